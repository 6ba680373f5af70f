"""`equicat data oc20`: OC20 from the web or from a disk into stores that training reads."""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equicat import __version__
from equicat.data.directory import read_description, store_path, write_description
from equicat.data.info import DatasetInfo
from equicat.data.shards import labels_of
from equicat.data.store import SHARD_SIZE, Store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import remove_directory, visible, writing_to
from equicat.options.values import Checked, Cutoff, Workers
from equicat.sources.oc20.catalogue import MAPPING, MIRROR, Split, splits_named
from equicat.sources.oc20.download import download, require_space, unpack
from equicat.sources.oc20.files import DATABASES, RAW, grouped, pieces_of
from equicat.sources.oc20.mapping import MappingTable, read_mapping
from equicat.sources.packing import Packed, PackOptions, first_good, pack

RAW_COLUMNS = ("reference_energy", "free_energy")
"""Further columns of raw frames, from which the total energies can be had again."""
BYTES_PER_STRUCTURE = {"float64": 4000.0, "float32": 2300.0}
"""Size of a structure in a store, at OC20's 73 atoms, by precision; tells whether a store will fit."""
ATTRIBUTION = "Open Catalyst 2020 (OC20), Chanussot et al., ACS Catal. 11, 6059 (2021), CC-BY 4.0"
NO_CLEAN_SLABS = "OC20's S2EF data have no clean slabs: nothing tells a model that their energy is 0 eV (docs/oc20.md)"
MAX_ADSORPTION_ENERGY = 50.0
"""eV. An energy further from zero is hardly an adsorption energy."""
DOWNLOADS = "downloads"
"""Directory of the data set in which archives are until they are converted."""


@dataclass(frozen=True)
class OC20Config(Checked):
    """Options of ``equicat data oc20``: the part of OC20, and how it is kept."""

    task: Literal["s2ef", "is2re", "is2rs"] = "s2ef"
    """s2ef (structure to energy and forces), is2re or is2rs (initial structure to relaxed energy or structure)."""
    split: str = "200k"
    """s2ef: 200k, 2M, 20M, all, rattled, md; is2re: 10k, 100k, all; both: val_id, val_ood_ads, val_ood_cat,
    val_ood_both, test_id, ... Several with commas; val and test are four each."""
    source: str | None = None
    """Directory that holds OC20 already: raw files, LMDBs, ASE-LMDBs or ASE databases. Without it, OC20 is downloaded.
    On the command line: --from."""
    mirror: str = MIRROR
    """Where to download from."""
    keep: bool = False
    """Keep the downloaded archives."""
    energy_reference: Literal["adsorption", "total", "relative"] = "adsorption"
    """Kind of the energies: adsorption in all of OC20; an LMDB or database of your own data may hold total or relative
    ones. Of raw files, which have the reference too, total keeps the total energies."""
    mapping: str | None = None
    """oc20_data_mapping.pkl to join, or download. Default: the one in the directory, if there is one."""
    precision: Literal["source", "float32", "float64"] = "source"
    """Precision of positions, cells and forces: float64, float32 (half the size), or source, which loses nothing."""
    edges_within: Cutoff | None = None
    """Count the pairs nearer than this (Å) for batches of equal numbers of edges; takes longer."""
    strict: bool = False
    """Stop at the first bad structure; without it bad ones are left out, counted and listed."""
    workers: Workers | None = None
    """Processes. Default: one a processor."""
    progress: bool = True
    """Show progress."""


def make_oc20(out: str | Path, config: OC20Config) -> Iterator[str]:
    """Write stores ``out/<task>/<split>``; what is there already is left. Yields a line on each when it is done.

    Killed at any moment, it goes on where it was when it is called again in the same way.

    Raises:
        InputError: for an unknown split, missing or damaged files, a broken download, too little space, or bad frames
            with ``strict``.
    """
    out = Path(out)
    splits = splits_named(config.task, config.split)
    todo = []
    for split in splits:
        if _is_there(out, split, config):
            yield f"{_store(out, split)}: is there already, {len(Store(_store(out, split))):,} structures"
        else:
            todo.append(split)
    if config.source is not None and todo:
        mapping = _mapping(config, [Path(config.source), out / DOWNLOADS], out)
        for split in todo:
            place = find_split(Path(config.source), split)
            yield _converted(out, split, place, config, mapping)
    elif todo:
        yield from _downloaded(out, todo, config)
    _describe(out, splits, config)
    if config.energy_reference == "adsorption" and any(
        split.task == "s2ef" and split.name == "train" for split in todo
    ):
        yield NO_CLEAN_SLABS


def find_split(root: Path, split: Split) -> Path:
    """The directory of a split below ``root``, or ``root`` itself if it holds files of OC20.

    Raises:
        InputError: if it is not there; the message says where it was looked for.
    """
    if root.is_file() and root.name.endswith(DATABASES):
        return root
    for place in [*(root / p for p in split.places()), root]:
        if place.is_dir() and any(p.name.endswith((*DATABASES, *RAW)) for p in visible(place)):
            return place
    raise InputError(
        f"{root}: no files of split {split.published!r} of task {split.task}; looked for databases or 0.extxyz.xz with "
        f"0.txt.xz there and in {', '.join(dict.fromkeys(split.places()))}"
    )


def _store(out: Path, split: Split) -> Path:
    return store_path(out, split.task, split.name)


def _is_there(out: Path, split: Split, config: OC20Config) -> bool:
    path = _store(out, split)
    if not path.exists():
        return False
    info = Store(path).info
    found = info.provenance.get("split")
    if found != split.published:
        raise InputError(f"{path}: holds split {found!r}, not {split.published!r}; choose another directory")
    if info.energy_reference != config.energy_reference:
        raise InputError(
            f"{path}: its energies are {info.energy_reference!r}, not {config.energy_reference!r}; "
            "choose another directory"
        )
    return True


def _mapping(config: OC20Config, places: Sequence[Path], out: Path) -> MappingTable | None:
    if config.mapping == "download":
        path = out / DOWNLOADS / MAPPING
        if not path.is_file():
            download(f"{config.mirror}/{MAPPING}", path, progress=config.progress)
        return read_mapping(path)
    if config.mapping is not None:
        return read_mapping(config.mapping)
    found = [place / MAPPING for place in places if (place / MAPPING).is_file()]
    return read_mapping(found[0]) if found else None


def _downloaded(out: Path, splits: list[Split], config: OC20Config) -> Iterator[str]:
    """Archive by archive: fetch, unpack what is wanted, convert, remove."""
    folder = out / DOWNLOADS
    for archive in dict.fromkeys(split.archive for split in splits):
        mine = [split for split in splits if split.archive == archive]
        path, unpacked = folder / archive.name, folder / archive.folder
        _require_space(out, mine, config)
        if not all(_unpacked_place(unpacked, split) for split in mine):
            if not path.is_file():
                download(f"{config.mirror}/{archive.name}", path, archive.md5, config.progress)
            _unpack(path, unpacked, mine, config.progress)
        if not config.keep:
            path.unlink(missing_ok=True)
        mapping = _mapping(config, [folder], out)
        for split in mine:
            place = _unpacked_place(unpacked, split)
            if place is None:
                raise InputError(f"{path}: has no {split.inside}; its layout is not the published one")
            yield _converted(out, split, place, config, mapping)
        remove_directory(unpacked)  # a part of it would pass for the whole
    if not any(folder.iterdir()):
        folder.rmdir()


def _unpack(path: Path, unpacked: Path, splits: list[Split], progress: bool) -> None:
    """Unpack the splits asked for; an archive of databases holds others too, one of raw frames holds one."""
    wanted = tuple(f"{prefix}{s.inside}/" for s in splits for prefix in ("", f"{s.archive.folder}/"))
    shutil.rmtree(unpacked, ignore_errors=True)
    unpack(path, unpacked, lambda name: name.startswith(wanted) or name.endswith((RAW[0], ".txt.xz")), progress)


def _unpacked_place(unpacked: Path, split: Split) -> Path | None:
    """Where the files of a split are in its unpacked archive."""
    places = {file.parent for file in visible(unpacked, "**/*") if file.name.endswith((*DATABASES, *RAW))}
    return next((p for p in sorted(places) if p.as_posix().endswith(f"/{split.inside}")), None)


def _require_space(out: Path, splits: list[Split], config: OC20Config) -> None:
    """Refuse to begin without room for archive and unpacked files, then for these and the stores; files there count."""
    archive, folder = splits[0].archive, out / DOWNLOADS
    n = sum(split.n_structures for split in splits)
    is_raw = archive.name.endswith(".tar")
    precision = ("float64" if is_raw else "float32") if config.precision == "source" else config.precision
    stores = n * BYTES_PER_STRUCTURE.get(precision, 0.0)
    unpacked = sum(split.unpacked * split.n_structures for split in splits)
    archived = archive.size
    have = 0
    for name in (archive.name, f"{archive.name}.part"):
        have += (folder / name).stat().st_size if (folder / name).is_file() else 0
    if (folder / archive.folder).is_dir():
        archived, unpacked = 0.0, 0.0
    peak = archived + unpacked + stores if config.keep else unpacked + max(archived, stores)
    require_space(out, max(0.0, peak - have))


def _converted(out: Path, split: Split, place: Path, config: OC20Config, mapping: MappingTable | None) -> str:
    pieces = pieces_of(place, SHARD_SIZE, config.energy_reference == "total")
    first = first_good(pieces, str(place))
    if pieces[0].log_path is not None and config.energy_reference == "relative":
        raise InputError(f"{place}: raw files have adsorption energies, or total ones; not relative")
    _require_labels(first, split)
    precision = config.precision
    if precision == "source":
        precision = "float32" if pieces[0].path.suffix == ".lmdb" else "float64"
    provenance: dict[str, Any] = {"dataset": "OC20", "task": split.task, "split": split.published}
    provenance["equicat"] = __version__
    if config.edges_within is not None:
        provenance["edges_within"] = config.edges_within
    description = f"{ATTRIBUTION}: {split.task} {split.published}"
    info = DatasetInfo(config.energy_reference, description=description, provenance=provenance)
    options = PackOptions(
        precision,
        tuple(name for name in RAW_COLUMNS if name in first.info),
        config.edges_within,
        config.strict,
        config.workers or len(os.sched_getaffinity(0)),
        config.progress,
    )
    path = _store(out, split)
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    result = pack(path, grouped(pieces, SHARD_SIZE), info, options, mapping)
    return _summary(path, result, split, config.source is None) + _doubt(first, config)


def _doubt(first: Structure, config: OC20Config) -> str:
    """A line that asks whether energies are adsorption energies, if the first one is too large for that."""
    energy = next((e for e in (first.energy, first.relaxed_energy) if e is not None), 0.0)
    if config.energy_reference != "adsorption" or abs(energy) < MAX_ADSORPTION_ENERGY:
        return ""
    return f"\n  the first energy is {energy:.1f} eV: if these are no adsorption energies, say --energy_reference total"


def _require_labels(first: Structure, split: Split) -> None:
    found = labels_of(first)
    missing = [name for name in split.labels if name not in found]
    if missing:
        raise InputError(
            f"{first.where}: no {missing[0]}, which split {split.published} of {split.task} has; found "
            f"{', '.join(found) or 'no labels'}. Is this another split or task?"
        )


def _summary(path: Path, result: Packed, split: Split, is_whole: bool) -> str:
    n_read = result.n_structures + len(result.refused)
    lines = [f"{path}: {n_read:,} structures read, {result.n_structures:,} written"]
    if result.refused:
        lines[0] += f", {len(result.refused):,} bad ones left out ({path / 'refused.txt'})"
        lines += [f"  {message}" for message in result.refused[:3]]
    if result.n_unmapped:
        lines.append(f"  {result.n_unmapped:,} structures are of systems that {MAPPING} does not have")
    if is_whole and n_read != split.n_structures:
        lines.append(f"  OC20's page says {split.n_structures:,} structures")
    return "\n".join(lines)


def _describe(out: Path, splits: list[Split], config: OC20Config) -> None:
    """Write ``dataset.json``, for people and `equicat data info`; what it says of other splits stays."""
    known = read_description(out).get("splits", {})
    known |= {f"{s.task}/{s.name}": f"OC20 {s.task} {s.published}" for s in splits}
    with writing_to(out):
        write_description(
            out, DatasetInfo(config.energy_reference, description=ATTRIBUTION), dict(sorted(known.items()))
        )
