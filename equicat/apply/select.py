"""`equicat select`: the structures that are worth a calculation, for training a model further (active learning)."""

import dataclasses
from pathlib import Path
from typing import Any

from equicat.data.batches import batches
from equicat.data.datasets import open_structures, require_elements
from equicat.data.labels import LABELS
from equicat.data.readers import check_extxyz_name, write
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.uncertainty import atom_features, most_informative, no_grade, with_grades
from equicat.options.values import Device, Positive, read_value
from equicat.terminal.progress import progress_bar


def select(
    run: str | Path,
    structures: tuple[str, ...],
    *,
    out: str,
    n: Positive = 10,
    batch_size: Positive = 16,
    device: Device = "auto",
    progress: bool = True,
) -> list[tuple[str, float]]:
    """Write the structures with the highest grades, each graded as if those before were training data.

    Args:
        run: Run directory that `equicat train` wrote.
        structures: Structure files, globs of them and folders with them, or one store; labels are not looked at.
        out: File to write: extxyz (also .gz, .xz), the most informative structure first.
        n: Structures to choose.
        batch_size: Structures computed together.
        device: Where to compute; auto takes a GPU if there is one.
        progress: Show a progress bar.

    Returns:
        Name and grade of each.

    Raises:
        InputError: if the run has no grade, for an element that the model does not know, or fewer structures than n.
    """
    n = read_value("n", n, Positive)
    check_extxyz_name(Path(out))
    model = saved.load(run, device)
    if model.grade is None:
        raise InputError(f"{run}: no grades, by which structures are chosen: {no_grade(model)}")
    dataset = open_structures(structures)
    require_elements(dataset, model.elements)
    if len(dataset) < n:
        raise InputError(f"--n: asks for {n} structures, there are {len(dataset)}")
    features = []
    loader = batches(dataset, model.cutoff, batch_size, dtype=model.dtype, labels=())
    for batch in progress_bar(loader, desc="select", unit="batch", disable=not progress, leave=False):
        sizes = batch.n_atoms.tolist()
        found, species = atom_features(model, batch.to(model.scale.device)).cpu(), model.species(batch).cpu()
        features += list(zip(found.split(sizes), species.split(sizes), strict=True))
    chosen = most_informative(model.grade, features, n)
    graded = [with_grades(dataset[k], model.grade.of(*features[k]).numpy()) for k, _ in chosen]
    nothing: dict[str, Any] = dict.fromkeys(LABELS)
    bare = [dataclasses.replace(s, **nothing) for s in graded]
    write(out, bare)
    return [(s.id or s.where, grade) for s, (_, grade) in zip(bare, chosen, strict=True)]
