"""`equicat evaluate RUN --relax`: IS2RE and IS2RS by relaxation with a model of energies and forces.

The initial structures of the splits are relaxed; what they become is compared with the relaxed energies and positions
of the data, beside the guesses that need no model. Where the data come from a potential that is at hand (EMT, for the
toy data), its forces at the predicted structures give AFbT, for which OC20 runs DFT. Beside may stand a direct model,
and the energies less those of the clean slabs, relaxed with the model as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from ase.calculators.emt import EMT
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from equicat.apply.clean_slab import clean_slab_of
from equicat.apply.evaluate import usable
from equicat.apply.kept import Kept, examples_of
from equicat.apply.options import ApplyOptions
from equicat.apply.predict import predictions
from equicat.apply.results import SplitResult, check_writable, folder_for, summary_of, write_other
from equicat.apply.traces import chosen, with_frames
from equicat.data.batch import Batch
from equicat.data.datasets import Dataset, require_elements
from equicat.data.directory import splits_of
from equicat.data.identity import TrainedOn, system_numbers
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models import saved
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.model import check_energy_reference
from equicat.models.potential import Potential
from equicat.relaxation import summary as relaxations
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.relax import relax
from equicat.run_directory import TRAINED_ON, data_config, members_of
from equicat.tasks.examples import Example
from equicat.tasks.metrics import Values
from equicat.tasks.tables import MetricSums, amount, format_table
from equicat.tasks.tasks import task_of, values_of

TASK = task_of(("relaxed_energy", "displacements"))
LABELS = ("relaxed_energy", "relaxed_positions")
CHUNK = 64
"""Systems whose metrics are computed together."""
NO_EDGES = 0.1
"""Å; cutoff of the batches that metrics take, which need no pairs."""


@dataclass(frozen=True)
class Beside:
    """Further rows of the tables."""

    direct: str | Path | None = None
    """Run of a model of relaxed energies, structures or both."""
    minus_clean_slab: bool = False
    """Relaxed energies less those of the slabs without their adsorbates (tag 2), relaxed with the same model."""


NOTHING_BESIDE = Beside()


@dataclass
class RelaxedSplit(SplitResult):
    """The results on one split, with what is to be said of the relaxations."""

    n_models: int = 1
    """How many rows are of models; they are the first ones."""
    relaxations: dict[str, Any] = field(default_factory=dict)
    """See :func:`equicat.relaxation.summary.summary_of`; and ``seconds_a_system_direct``, if a direct model stands
    beside."""


def evaluate_relaxations(
    run: str | Path,
    data: str | Path | None = None,
    config: RelaxConfig | None = None,
    *,
    beside: Beside = NOTHING_BESIDE,
    out: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
    energy_reference: str | None = None,
) -> dict[str, Any]:
    """Relax the initial structures of every IS2RE split of a data set, training split left out, and compare.

    Args:
        run: of a model of energies and forces.
        data: data set directory, store or file with relaxed energies and positions; None: where the validation data
            of the run come from.
        config: how to relax.
        beside: further rows.
        out: folder for the results; None: RUN/evaluations/NAME-relax, named by the data.
        device: where to compute.
        progress: show progress bars.
        energy_reference: what the energies of a file are; total if not given.

    Returns:
        As :func:`equicat.apply.evaluate.evaluate`: metrics by split and row, and the files under ``written``; and for
        each split ``relaxations``: converged and successful ones, flags, classes, steps and seconds. A system that
        gave no energy counts with the mean energy of the training data and no displacement.

    Raises:
        InputError: if the model gives no forces, or the data lack relaxed energies or positions, or hold another energy
            than the model predicts; if a clean slab is to be taken off an energy that is no adsorption energy.
    """
    model = saved.load_potential(run, device)
    ApplyOptions(minus_clean_slab=beside.minus_clean_slab).check(model.info)
    direct = None if beside.direct is None else _direct_model(beside.direct, device)
    data = _validation_data(members_of(run)[0]) if data is None else Path(data)
    datasets, skipped = usable(model, _splits(data), LABELS, energy_reference=energy_reference)
    if direct is not None:
        for dataset in datasets.values():
            check_energy_reference(direct.info, dataset.info, dataset.path)
            require_elements(dataset, direct.elements)
    folder = folder_for(Path(run), data, "relax") if out is None else Path(out)
    check_writable(folder)
    results = {
        name: evaluate_split(model, dataset, config or RelaxConfig(), progress, direct, beside.minus_clean_slab)
        for name, dataset in datasets.items()
    }
    known = TrainedOn.read(members_of(run)[0] / TRAINED_ON)
    if known is not None:
        for name, dataset in datasets.items():
            results[name].n_trained_on, results[name].n_chose_checkpoint = known.overlap(dataset)
    more = {"task": "is2re and is2rs by relaxation", "skipped": skipped}
    summary = summary_of(model.info, str(data.resolve()), results) | more
    return summary | {"written": [str(path) for path in write_other(folder, summary, results)]}


def _direct_model(run: str | Path, device: str) -> DirectModel:
    model = saved.load(run, device)
    if not isinstance(model, DirectModel):
        raise InputError(f"{run}: trained for s2ef; --direct takes a run that was trained for is2re or is2rs")
    return model


def _validation_data(run: str | Path) -> Path:
    sources = data_config(run).val
    if len(sources) != 1 or not Path(sources[0]).is_dir():
        raise InputError(
            f"{run}: its validation data are no data set directory; name data with relaxed structures: --data"
        )
    return Path(sources[0])


def _splits(data: Path) -> dict[str, Path]:
    found = splits_of(data, "is2re")
    return {name: path for name, path in found.items() if name != "train" or path == data} or found


def evaluate_split(
    model: Potential,
    dataset: Dataset,
    config: RelaxConfig,
    progress: bool,
    direct: DirectModel | None = None,
    minus_clean_slab: bool = False,
) -> RelaxedSplit:
    """One split; see :func:`evaluate_relaxations`."""
    initial = [dataset[i] for i in range(len(dataset))]
    result = relax(initial, model, config, progress=progress)
    assert result is not None
    relaxed, statistics = result.structures, model.info.statistics
    summary = relaxations.summary_of(relaxed, [_as_relaxed(s) for s in initial])
    less = _less_clean_slabs(model, initial, relaxed, config, progress) if minus_clean_slab else None
    started = perf_counter()
    beside = [] if direct is None else _guesses_of(direct, dataset, progress)
    if direct is not None:
        summary["seconds_a_system_direct"] = (perf_counter() - started) / len(initial)
    table, kept = (
        _Table(dataset.info.provenance.get("generator") == "equicat data emt"),
        Kept(("energy", "displacements"), model.info.domain),
    )
    for number, first in enumerate(range(0, len(initial), CHUNK)):
        chunk = slice(first, first + CHUNK)
        batch = Batch.from_structures(initial[chunk], NO_EDGES, dtype=torch.float64)
        found = values_of(_prediction(batch, relaxed[chunk], statistics.mean_energy), batch)
        guesses = {f"{model.info.network.name}, relaxed": found}
        if less is not None:
            row = f"{model.info.network.name}, relaxed, less clean slab"
            guesses[row] = values_of(_prediction(batch, less[chunk], statistics.mean_energy), batch)
        if direct is not None:
            guesses[f"{direct.info.network.name}, direct"] = beside[number]
        table.add(guesses | TASK.baselines(batch, statistics), batch, initial[chunk])
        kept.add(batch, found, TASK.target(batch))
    kept.examples.kept += _chosen_examples(model, initial, relaxed, config)
    systems = system_numbers(dataset)
    return RelaxedSplit(
        n_structures=len(initial),
        n_systems=len(np.unique(systems)),
        n_free_atoms=kept.n_free_atoms,
        rows=table.rows(),
        arrays=kept.arrays(systems),
        n_models=1 + (less is not None) + (direct is not None),
        relaxations=summary,
    )


def _chosen_examples(
    model: Potential, initial: Sequence[Structure], relaxed: Sequence[Structure], config: RelaxConfig
) -> list[Example]:
    """The relaxations with the best, the median and the worst energy, with their steps."""
    energies = np.array([np.nan if s.energy is None else s.energy for s in relaxed])
    places = chosen(np.abs(energies - np.array([s.relaxed_energy for s in initial], dtype=float)))
    if not places:
        return []
    first, last = ([systems[k] for k in places.values()] for systems in (initial, relaxed))
    batch = Batch.from_structures(first, NO_EDGES, dtype=torch.float64)
    found = values_of(_prediction(batch, last, model.info.statistics.mean_energy), batch)
    examples = examples_of(batch, found, TASK.target(batch), "displacements")
    examples = [replace(example, why=why) for example, why in zip(examples, places, strict=True)]
    return with_frames(examples, first, model, config)


def _less_clean_slabs(
    model: Potential, initial: Sequence[Structure], relaxed: Sequence[Structure], config: RelaxConfig, progress: bool
) -> list[Structure]:
    """The relaxed structures with the energies (eV) of their clean slabs, relaxed from the same places, taken off."""
    result = relax([clean_slab_of(structure) for structure in initial], model, config, progress=progress)
    assert result is not None
    energies = [
        None if one.energy is None or slab.energy is None else one.energy - slab.energy
        for one, slab in zip(relaxed, result.structures, strict=True)
    ]
    return [replace(one, energy=energy) for one, energy in zip(relaxed, energies, strict=True)]


def _as_relaxed(structure: Structure) -> Structure:
    """The relaxed structure of the data, with its energy."""
    positions, energy = structure.relaxed_positions, structure.relaxed_energy
    assert positions is not None
    return replace(structure, positions=positions, energy=energy, forces=None)


def _guesses_of(direct: DirectModel, dataset: Dataset, progress: bool) -> list[Values]:
    """Predictions of a direct model, chunk by chunk, in float64 on the processor."""
    options = ApplyOptions(batch_size=CHUNK, progress=progress)
    found = [values_of(prediction, batch) for batch, prediction in predictions(direct, dataset, options)]
    return [Values(energy=_double(values.energy), displacements=_double(values.displacements)) for values in found]


def _double(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.double().cpu()


class _Table:
    """Metrics of the rows of a table; with EMT's forces at the predicted structures for data that EMT made."""

    def __init__(self, is_emt: bool) -> None:
        self.is_emt = is_emt
        self.sums: dict[str, MetricSums] = {}

    def add(self, guesses: Mapping[str, Values], batch: Batch, structures: Sequence[Structure]) -> None:
        target = TASK.target(batch)
        for row, guess in guesses.items():
            if self.is_emt and guess.displacements is not None:
                guess = replace(guess, reference_forces=_emt_forces(structures, batch, guess.displacements))
            quantities = [name for name, values in vars(guess).items() if values is not None]
            self.sums.setdefault(row, MetricSums(quantities)).add(guess, target, batch)

    def rows(self) -> dict[str, dict[str, float]]:
        return {row: sums.compute() for row, sums in self.sums.items()}


def _prediction(batch: Batch, relaxed: Sequence[Structure], mean_energy: float) -> RelaxedPrediction:
    energies = [mean_energy if s.energy is None else s.energy for s in relaxed]
    positions = torch.from_numpy(np.concatenate([s.positions for s in relaxed]))
    return RelaxedPrediction(torch.tensor(energies, dtype=torch.float64), positions - batch.positions)


def _emt_forces(
    structures: Sequence[Structure], batch: Batch, displacements: Float[Tensor, "n_atoms 3"]
) -> Float[Tensor, "n_atoms 3"]:
    """EMT's forces (eV/Å) at the predicted relaxed positions."""
    positions = (batch.positions + displacements).numpy()
    found = list[ndarray]()
    for structure, here in zip(structures, _by_system(positions, structures), strict=True):
        atoms = structure.to_ase()
        atoms.positions, atoms.calc = here, EMT()
        found.append(atoms.get_forces(apply_constraint=False))
    return torch.from_numpy(np.concatenate(found))


def _by_system(values: ndarray, structures: Sequence[Structure]) -> Iterator[ndarray]:
    yield from np.split(values, np.cumsum([len(s) for s in structures])[:-1])


def as_text(summary: Mapping[str, Any]) -> str:
    """The tables that `equicat evaluate --relax` prints, one a split."""
    parts = []
    for name, split in summary["splits"].items():
        title = f"{name}: {amount(split['n_structures'], split['n_systems'])}, {split['n_free_atoms']} free atoms"
        parts.append("\n".join([title, format_table(split["rows"]), *relaxations.words_on(split["relaxations"])]))
    parts.append(f"Energies: {summary['energy_reference']}. Fixed atoms are not counted.")
    parts += [f"{name}: skipped: {reason}" for name, reason in summary["skipped"].items()]
    return "\n\n".join(parts)
