"""`equicat data info`: what is in a data set, as text, however large it is: one shard in memory at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from numpy import ndarray

from equicat.data.datasets import Dataset, MemoryDataset, open_dataset
from equicat.data.directory import is_store, read_description, stores_in
from equicat.data.fitted import evenly_spread
from equicat.data.neighbors import neighbor_list
from equicat.data.readers import stem_of
from equicat.data.shards import OPTIONAL
from equicat.data.store import Store
from equicat.errors import InputError
from equicat.terminal.progress import progress_bar

HISTOGRAM_BINS = 8
NEIGHBOR_SAMPLE = 200
"""Structures whose neighbours are counted."""
NEIGHBOR_CUTOFF = 6.0
"""Å; that of OC20's models."""


def describe(
    path: str | Path,
    verify: bool = False,
    progress: bool = False,
    *,
    energy_key: str | None = None,
    forces_key: str | None = None,
) -> str:
    """Describe a data set as text: counts, elements, ranges, energy reference, labels, sizes, neighbours of splits.

    Args:
        path: the root of a data set, a directory of splits, one split, or a structure file.
        verify: compare every file of the stores with its checksum.
        progress: show a progress bar of that.
        energy_key: of a structure file, the key of the energies.
        forces_key: of a structure file, the column of the forces.

    Raises:
        InputError: if there is no data set at ``path``, a file of it has changed, or a key is absent or given for
            something else than a structure file.
    """
    path = Path(path)
    if not path.is_dir() or is_store(path):
        dataset = open_dataset(path, energy_key, forces_key=forces_key)
        return _describe_split(stem_of(path), dataset, verify, progress)
    if energy_key is not None or forces_key is not None:
        raise InputError(f"{path}: an energy key or forces key applies to structure files only")
    stores = stores_in(path)
    head = [f"{path}", *(f"  {line}" for line in read_description(path).get("description", "").splitlines())]
    parts = [_describe_split(store.relative_to(path).as_posix(), Store(store), verify, progress) for store in stores]
    return "\n\n".join(["\n".join(head), *parts])


def _describe_split(name: str, dataset: Dataset, verify: bool, progress: bool) -> str:
    checked = _verified(dataset, progress) if verify and isinstance(dataset, Store) else {}
    n_atoms, labels = dataset.n_atoms, [label for label in OPTIONAL if label in dataset.fields]
    systems = f"{counted(_n_systems(dataset), 'system')}, " if "sid" in labels else ""
    references = ", ".join(f"{key} {value:.4f}" for key, value in dataset.info.reference_energies.items())
    lines = {
        "elements": " ".join(chemical_symbols[z] for z in dataset.elements),
        "labels": " ".join(_counted_labels(dataset)) or "none",
        "energies are": dataset.info.energy_reference + (f"; references (eV): {references}" if references else ""),
    }
    lines |= {label: _range(dataset, label) for label in ("energy", "relaxed_energy") if label in labels}
    if "forces" in labels:
        rms, largest = _free_force_statistics(dataset)
        lines["forces"] = f"of free atoms: RMS component {rms:.3f}, largest {largest:.3f} eV/Å"
    if "stress" in labels:
        largest = max(float(np.abs(stress).max()) for (stress,) in dataset.chunks("stress"))
        lines["stress"] = f"largest component {largest:.4f} eV/Å³"
    n_clean = _n_clean_slabs(dataset)
    if 0 < n_clean < len(dataset):
        lines["clean slabs"] = f"{n_clean:,} structures have no adsorbate (tag 2)"
    lines["fixed atoms"] = f"{sum(int(fixed.sum()) for (fixed,) in dataset.chunks('fixed')) / n_atoms.sum():.0%}"
    lines |= _of_store(dataset) | checked if isinstance(dataset, Store) else _of_file(dataset)
    lines["atoms a structure"] = f"{n_atoms.min()} to {n_atoms.max()}, mean {n_atoms.mean():.1f}"
    text = [f"{name}: {systems}{counted(len(dataset), 'structure')}, {n_atoms.sum(dtype=np.int64):,} atoms"]
    text += [f"  {key:<18} {value}" for key, value in lines.items()]
    return "\n".join([*text, *_histogram(n_atoms), *_neighbors(dataset)])


def _verified(store: Store, progress: bool) -> dict[str, str]:
    files = progress_bar(store.verify(), total=len(store.shards) + 1, unit=" files", disable=not progress, leave=False)
    return {"checksums": f"all {sum(1 for _ in files):,} files are as they were written"}


def _counted_labels(dataset: Dataset) -> list[str]:
    """Labels and ids; those that only some structures have with their number, as ``forces (3 of 10)``."""
    counts = dataset.counts if isinstance(dataset, MemoryDataset) else {}
    names = [name for name in OPTIONAL if name in dataset.fields or name in counts]
    return [name if name in dataset.fields else f"{name} ({counts[name]:,} of {len(dataset):,})" for name in names]


def _of_file(dataset: MemoryDataset) -> dict[str, str]:
    """Names that may hold labels: further entries of frames, and columns of their atoms."""
    entries = sorted({key for structure in dataset for key in structure.info})
    columns = sorted({name for structure in dataset for name in structure.columns})
    found = {"entries": " ".join(entries), "columns of atoms": " ".join(columns)}
    return {title: names for title, names in found.items() if names}


def _of_store(store: Store) -> dict[str, str]:
    lines = {}
    if store.columns:
        lines["columns"] = " ".join(store.columns)
    if "anomaly" in store.columns:
        values, counts = np.unique(np.concatenate([a for (a,) in store.chunks("anomaly")]), return_counts=True)
        lines["anomaly"] = ", ".join(f"{v}: {n:,}" for v, n in zip(values.tolist(), counts.tolist(), strict=True))
    if (store.path / "refused.txt").is_file():
        n_refused = len((store.path / "refused.txt").read_text(encoding="utf-8").splitlines())
        lines["left out"] = f"{n_refused:,} bad structures, listed in {store.path / 'refused.txt'}"
    return lines


def _n_clean_slabs(dataset: Dataset) -> int:
    """Number of structures without an atom of an adsorbate."""
    n_clean, start = 0, 0
    for tags, pbc in dataset.chunks("tags", "pbc"):
        n_atoms = dataset.n_atoms[start : start + len(pbc)]
        starts = np.cumsum(n_atoms, dtype=np.int64) - n_atoms
        n_clean += int((np.maximum.reduceat(tags, starts) < 2).sum())
        start += len(pbc)
    return n_clean


def counted(n: int, noun: str) -> str:
    """How many there are, in words: ``1 system``, ``2 systems``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _n_systems(dataset: Dataset) -> int:
    systems: set[bytes] = set()
    for (sids,) in dataset.chunks("sid"):
        systems.update(np.unique(sids).tolist())
    return len(systems)


def _range(dataset: Dataset, label: str) -> str:
    """Extremes, mean and standard deviation; about the first mean, so that nothing cancels."""
    n, total, squares, low, high, origin = 0, 0.0, 0.0, np.inf, -np.inf, None
    for (e,) in dataset.chunks(label):
        origin = e.mean() if origin is None else origin
        n, total, squares = n + len(e), total + (e - origin).sum(), squares + ((e - origin) ** 2).sum()
        low, high = min(low, e.min()), max(high, e.max())
    assert origin is not None
    mean, deviation = total / n, (squares / n - (total / n) ** 2) ** 0.5
    return f"{low:.3f} to {high:.3f} eV, mean {origin + mean:.3f}, standard deviation {deviation:.3f}"


def _free_force_statistics(dataset: Dataset) -> tuple[float, float]:
    """Root mean square and largest magnitude of the force components of free atoms; zeros if no atom is free."""
    square_sum, n_components, largest = 0.0, 0, 0.0
    for forces, fixed in dataset.chunks("forces", "fixed"):
        free = np.abs(forces[~fixed], dtype=np.float64)
        square_sum += float((free**2).sum())
        n_components += free.size
        largest = max(largest, float(free.max(initial=0.0)))
    return (square_sum / max(n_components, 1)) ** 0.5, largest


def _neighbors(dataset: Dataset) -> Iterator[str]:
    """Neighbours of the atoms of some structures, spread evenly."""
    sample = evenly_spread(len(dataset), NEIGHBOR_SAMPLE)
    try:
        graphs = [(len(s), neighbor_list(s, NEIGHBOR_CUTOFF)[0][0]) for s in (dataset[int(i)] for i in sample)]
    except InputError as error:
        yield f"  {'neighbours':<18} not counted: {error}"
        return
    counts = np.concatenate([np.bincount(centers, minlength=n) for n, centers in graphs])
    which = "" if len(sample) == len(dataset) else f" (sample of {len(sample)} structures)"
    of = f"{counts.min()} to {counts.max()}, mean {counts.mean():.1f}"
    yield f"  {'neighbours':<18} within {NEIGHBOR_CUTOFF:g} Å of an atom: {of}{which}"
    yield from _histogram(counts)


def _histogram(values: ndarray) -> list[str]:
    """Counts by value, a bar a line."""
    width = max(1, -(-int(values.max() - values.min() + 1) // HISTOGRAM_BINS))
    lower = values.min() + width * np.arange(HISTOGRAM_BINS + 1)
    counts, _ = np.histogram(values, lower)
    bars = [
        f"    {low:>5} to {low + width - 1:<5} {count:>11,} {'#' * round(40 * count / counts.max())}"
        for low, count in zip(lower[:-1], counts, strict=True)
        if count
    ]
    return bars if len(bars) > 1 else []
