"""Relaxations from the files of a group, one at a time."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from os.path import commonpath
from pathlib import Path

from equicat.data.labels import LabelKeys
from equicat.data.readers import natural_order, read_each, stem_of
from equicat.data.structure import Structure
from equicat.data.vasp import progress_of
from equicat.errors import InputError
from equicat.files import visible

RELAXATIONS = re.compile(r"(.*OUTCAR.*|.*vasprun.*\.xml.*|.*\.(traj|extxyz|xyz))(\.(gz|xz|bz2))?", re.IGNORECASE)
"""Names of the files that a directory is searched for."""
VASP = re.compile(r".*(OUTCAR|vasprun).*", re.IGNORECASE)
"""Files that are named after the program, so the folder says what they are."""


@dataclass(frozen=True)
class Trajectory:
    """The frames of one relaxation, as they were read."""

    sid: str
    files: tuple[str, ...]
    frames: list[Structure]
    unreadable: list[str] = field(default_factory=list)
    """A message for each frame that could not be read."""
    is_pair: bool = False
    """Whether it is an initial and a relaxed structure from two files."""
    folder: str = ""
    """The folder, below the one that all files share, in which its file is."""


@dataclass
class Found:
    """Files with relaxations."""

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that are not read although they hold relaxations, with the reason."""
    notes: list[str] = field(default_factory=list)
    """Unusual choices between two files of one calculation."""


def find_files(paths: Sequence[str]) -> Found:
    """The files to read at some paths.

    Directories are searched at all depths for ``.traj``, ``.extxyz``, ``.xyz``, ``vasprun.xml`` and ``OUTCAR`` files,
    also compressed. A VASP folder has its relaxation twice: the ``vasprun.xml`` is read, unless the ``OUTCAR`` has more
    frames.

    Args:
        paths: files, directories and glob patterns.

    Raises:
        InputError: if a path does not exist, or a directory holds no such file.
    """
    result = Found()
    for path in (Path(p) for pattern in paths for p in (sorted(glob.glob(pattern)) or [pattern])):
        if not path.is_dir():
            if not path.is_file():
                raise InputError(f"{path}: no such file or directory")
            result.files.append(path)
            continue
        names = (p for p in visible(path, "**/*") if RELAXATIONS.fullmatch(p.name) and p.is_file())
        files = sorted(names, key=natural_order)
        if not files:
            raise InputError(f"{path}: no .traj, .extxyz, .xyz, vasprun.xml or OUTCAR file in it (also .gz, .xz)")
        xml_files = {_calculation(file): file for file in files if "vasprun" in file.name.lower()}
        twice = {
            file: xml for file in files if "outcar" in file.name.lower() and (xml := xml_files.get(_calculation(file)))
        }
        left = {_other_of(outcar, xml, result) for outcar, xml in twice.items()}
        result.files += [file for file in files if file not in left]
    result.files = list(dict.fromkeys(result.files))
    return result


def _calculation(file: Path) -> tuple[Path, str]:
    """Folder and rest of the name, which OUTCAR and vasprun.xml of one calculation share, as ``.1`` of ``OUTCAR.1``."""
    name = re.sub(r"(?i)\.(gz|xz|bz2)$", "", file.name)
    return file.parent, re.sub(r"(?i)outcar|vasprun|xml|[._-]", "", name)


def _other_of(outcar: Path, xml: Path, result: Found) -> Path:
    """Choose between OUTCAR and vasprun.xml of one calculation: the one not to read; ``result`` gets the reason."""
    in_outcar, in_xml = progress_of(outcar), progress_of(xml)
    # With as many frames, one that breaks off after them tells nothing that the OUTCAR does not.
    takes_outcar = in_outcar.n_frames > in_xml.n_frames or (in_xml.breaks_off and in_outcar.n_frames == in_xml.n_frames)
    left, taken = (xml, outcar) if takes_outcar and in_outcar.n_frames else (outcar, xml)
    if in_outcar.n_frames == in_xml.n_frames and not in_xml.breaks_off:
        result.skipped[str(left)] = "the vasprun.xml beside it holds the same calculation"
        return left
    broken = " and breaks off" if in_xml.breaks_off else ""
    reason = (
        f"{xml.name} has {in_xml.n_frames} frames{broken}, {outcar.name} has {in_outcar.n_frames}; {taken.name} is read"
    )
    result.skipped[str(left)] = reason
    result.notes.append(f"{outcar.parent}: {reason}")
    return left


def file_sids(files: Sequence[Path]) -> dict[Path, str]:
    """A system id for each file, for those that have none inside: the file's name, or its folder's for VASP's files.

    The path is added where that is not unique. Files of one VASP folder share their id (see ``join``).
    """
    if not files:
        return {}
    names = {file: file.absolute().parent if VASP.match(file.name) else _without_suffix(file) for file in files}
    short = {file: name.name for file, name in names.items()}
    if len(set(short.values())) == len(set(names.values())):
        return short
    root = Path(commonpath([name.parent for name in names.values()]))
    return {file: name.relative_to(root).as_posix() for file, name in names.items()}


def file_folders(files: Sequence[Path]) -> dict[Path, str]:
    """The folder of each file that tells it from others: the first one below the folder that all files share.

    A VASP calculation has a folder of its own, which does not count: ``Cu211/O/OUTCAR`` and ``Cu211/OH.traj`` are both
    in ``Cu211``.
    """
    if not files:
        return {}
    places = {file: file.absolute().parent for file in files}
    places |= {file: place.parent for file, place in places.items() if VASP.match(file.name)}
    root = Path(commonpath(list(places.values())))
    return {file: (place.relative_to(root).parts or (root.name,))[0] for file, place in places.items()}


def _without_suffix(file: Path) -> Path:
    return file.absolute().with_name(stem_of(file))


def trajectories(
    files: Sequence[Path], keys: LabelKeys, sid_key: str = "sid", join: bool = False
) -> Iterator[Trajectory]:
    """The relaxations in the files, one at a time, in the files' order.

    A file is one relaxation, or several whose frames follow each other and differ in ``sid_key``.

    Args:
        files: that :func:`find_files` found.
        keys: the labels that are wanted, and where they stand.
        sid_key: info key that says to which system a frame belongs.
        join: files with the same system id go on where the one before ended (a restarted calculation).

    """
    sids, folders = file_sids(files), file_folders(files)
    items = (item for file in files for item in _items(file, sids[file], keys, sid_key))
    for key, group in groupby(items, lambda item: item[0] if join else item[:2]):
        trajectory = _gather(key if isinstance(key, str) else key[0], group)
        yield replace(trajectory, folder=folders[Path(trajectory.files[0])])


def each_once(found: Iterable[Trajectory]) -> Iterator[Trajectory]:
    """The relaxations as they come, provided that no system comes twice.

    Raises:
        InputError: naming the system and the files.
    """
    seen: dict[str, str] = {}
    for trajectory in found:
        if trajectory.sid in seen:
            raise InputError(
                f"system {trajectory.sid!r} is in {seen[trajectory.sid]} and again in {trajectory.files[0]}: if the "
                "one goes on where the other ended, name them one after the other with --join true; if not, give each "
                "system its own id"
            )
        seen[trajectory.sid] = trajectory.files[-1]
        yield trajectory


Item = tuple[str, str, Structure | InputError]
"""System id, file, and the frame or what is wrong with it."""


def _items(file: Path, file_sid: str, keys: LabelKeys, sid_key: str) -> Iterator[Item]:
    sid = file_sid
    try:
        for frame in read_each(file, keys):
            if isinstance(frame, Structure):
                sid = _sid_of(frame, sid_key) or file_sid
            yield sid, str(file), frame
    except InputError as error:
        yield sid, str(file), error


def _sid_of(frame: Structure, sid_key: str) -> str:
    return frame.sid if sid_key == "sid" else str(frame.info.get(sid_key, ""))


def _gather(sid: str, items: Iterable[Item], is_pair: bool = False) -> Trajectory:
    files: dict[str, None] = {}
    frames, unreadable = [], []
    for _, file, frame in items:
        files[file] = None
        if isinstance(frame, Structure):
            frames.append(frame)
        else:
            unreadable.append(str(frame))
    return Trajectory(sid, tuple(files), _numbered(sid, frames), unreadable, is_pair)


def _numbered(sid: str, frames: list[Structure]) -> list[Structure]:
    """Frames in the order of their own numbers if each has one, else numbered as they come."""
    numbers = [frame.fid for frame in frames]
    given = None not in numbers and len(set(numbers)) == len(numbers)
    if given:
        frames = sorted(frames, key=lambda frame: frame.fid or 0)
    return [replace(frame, sid=sid, fid=frame.fid if given else i) for i, frame in enumerate(frames)]


def pairs(
    initial: Sequence[str], relaxed: Sequence[str], keys: LabelKeys, sid_key: str = "sid"
) -> Iterator[Trajectory]:
    """Relaxations of two frames, from files of initial and files of relaxed structures in the same order.

    Raises:
        InputError: if there are not as many files, or structures in two that belong together, or their ids differ.
    """
    if len(initial) != len(relaxed):
        raise InputError(f"{len(initial)} files of initial structures but {len(relaxed)} of relaxed ones; give pairs")
    sids = Counter(stem_of(Path(file)) for file in initial)
    folders = file_folders([Path(file) for file in initial])
    for first, last in zip(initial, relaxed, strict=True):
        # Both files are often called initial.extxyz; then the folder says which is which.
        name = stem_of(Path(first)) if sids[stem_of(Path(first))] == 1 else Path(first).absolute().parent.name
        for i, (a, b) in enumerate(zip_longest(read_each(first, keys), read_each(last, keys))):
            if a is None or b is None:
                short, long = (first, last) if a is None else (last, first)
                raise InputError(
                    f"{short} ends after {i} structures, {long} has more; both must list the same systems in one order"
                )
            ids = [_sid_of(s, sid_key) if isinstance(s, Structure) else "" for s in (a, b)]
            if all(ids) and ids[0] != ids[1]:
                raise InputError(
                    f"structure {i}: {first} has system {ids[0]!r}, {last} has {ids[1]!r}; "
                    "both must list the same systems in one order"
                )
            sid = ids[0] or ids[1] or f"{name}-{i}"
            frames = [replace(s, fid=k) if isinstance(s, Structure) else s for k, s in enumerate((a, b))]
            pair = _gather(sid, [(sid, first, frames[0]), (sid, last, frames[1])], is_pair=True)
            yield replace(pair, folder=folders[Path(first)])
