"""Small files in OC20's formats, written as the programs that made the real ones do."""

import json
import lzma
import pickle
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import ase.db
import lmdb
import numpy as np
import torch
from ase.data import chemical_symbols
from ase.io.jsonio import encode

from equicat.data.structure import Structure

REFERENCE = -123.456789


def oc20_like(seed: int, n_atoms: int | None = None) -> Structure:
    """A slab-like frame with every field that OC20 has; numbers with the digits that its files have."""
    rng = np.random.default_rng([20, seed])
    n = n_atoms or int(rng.integers(4, 12))
    cell = np.array([[9.0, 0.0, 0.0], [-2.5, 8.0, 0.0], [1.0, 2.0, 21.0]]) + rng.normal(scale=0.1, size=(3, 3))
    tags = np.sort(rng.integers(0, 3, n))
    return Structure(
        numbers=rng.choice([1, 6, 8, 29, 78], n),
        positions=np.round(rng.uniform(-9.0, 25.0, (n, 3)), 8),
        cell=cell,
        pbc=np.ones(3, bool),
        fixed=tags == 0,
        tags=tags,
        energy=round(float(rng.normal()), 8),
        forces=np.round(rng.normal(scale=0.5, size=(n, 3)), 8),
        sid=str(1000000 + seed // 3),
        fid=seed % 3,
    )


def with_relaxed(structure: Structure) -> Structure:
    """A structure as an IS2RE system: no frame number, relaxed energy and positions."""
    values = {**vars(structure), "fid": None, "relaxed_energy": structure.energy - 1.0}
    return Structure(**values | {"relaxed_positions": structure.positions + 0.125})


def raw_frame(structure: Structure, reference: float = REFERENCE) -> str:
    """One frame of an ``N.extxyz`` file: total energy, mask of what moves, forces."""
    total = structure.energy + reference
    lines = [
        str(len(structure)),
        f'Lattice="{" ".join(str(float(v)) for v in structure.cell.ravel())}" '
        "Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 "
        f'energy={total:.8f} free_energy={total - 0.001:.8f} pbc="T T T"',
    ]
    for z, r, fixed, tag, f in zip(
        structure.numbers, structure.positions, structure.fixed, structure.tags, structure.forces, strict=True
    ):
        lines.append(
            f"{chemical_symbols[z]:<2} {r[0]:16.8f} {r[1]:16.8f} {r[2]:16.8f}  {'F' if fixed else 'T'} {tag:8d} "
            f"{f[0]:16.8f} {f[1]:16.8f} {f[2]:16.8f}"
        )
    return "\n".join(lines) + "\n"


def log_line(structure: Structure, reference: float = REFERENCE) -> str:
    return f"random{structure.sid},frame{structure.fid},{reference}\n"


def write_raw(folder: Path, structures: Sequence[Structure], per_file: int) -> Path:
    """``N.extxyz.xz`` and ``N.txt.xz``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(structures), per_file)):
        part = structures[start : start + per_file]
        for name, function in (("extxyz", raw_frame), ("txt", log_line)):
            text = "".join(function(s) for s in part).encode()
            (folder / f"{number}.{name}.xz").write_bytes(lzma.compress(text, preset=0))
    return folder


@contextmanager
def torch_geometric(style: str) -> Iterator[type]:
    """A ``Data`` class that pickles as PyTorch Geometric's does, without it: ``old`` is PyG 1.6, ``new`` 2.8."""
    data, storage = ModuleType("torch_geometric.data.data"), ModuleType("torch_geometric.data.storage")
    classes = {}
    for name, module in (("Data", data), ("DataEdgeAttr", data), ("DataTensorAttr", data), ("GlobalStorage", storage)):
        classes[name] = type(name, (), {"__module__": module.__name__})
        setattr(module, name, classes[name])

    def make(**fields: object) -> object:
        value = classes["Data"]()
        if style == "old":
            unset = dict.fromkeys(("x", "edge_index", "edge_attr", "y", "norm", "face"))
            value.__dict__.update(unset | fields)
            return value
        store = classes["GlobalStorage"]()
        store.__dict__.update(_mapping=fields, _parent=value)
        attributes = {"_edge_attr_cls": classes["DataEdgeAttr"], "_tensor_attr_cls": classes["DataTensorAttr"]}
        value.__dict__.update(attributes, _store=store)
        return value

    names = {"torch_geometric": ModuleType("torch_geometric"), "torch_geometric.data": ModuleType("torch_geometric")}
    names |= {data.__name__: data, storage.__name__: storage}
    saved = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        yield make
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def data_fields(structure: Structure, style: str) -> dict[str, object]:
    """Names and types of the fields as in the released files (old), or as fairchem 1.10 writes them (new)."""
    n, old = len(structure), style == "old"
    fields = {
        "edge_index": torch.zeros(2, 5, dtype=torch.int64),
        "pos": torch.tensor(structure.positions, dtype=torch.float32),
        "cell": torch.tensor(structure.cell, dtype=torch.float32).view(1, 3, 3),
        "atomic_numbers": torch.tensor(structure.numbers, dtype=torch.float32 if old else torch.uint8),
        "natoms": n,
        "tags": torch.tensor(structure.tags),
        "fixed": torch.tensor(structure.fixed, dtype=torch.float32 if old else torch.int32),
        "sid": int(structure.sid),
    }
    if structure.fid is not None:
        fields["fid"] = torch.tensor([structure.fid]) if old else structure.fid
    if structure.relaxed_energy is not None:
        fields |= {"y_init": structure.energy, "y_relaxed": structure.relaxed_energy}
        fields["pos_relaxed"] = torch.tensor(structure.relaxed_positions, dtype=torch.float32)
    elif structure.energy is not None:
        fields["y" if old else "energy"] = np.float64(structure.energy)
    if structure.forces is not None:
        # Not contiguous, as a slice of a larger tensor would be.
        wide = torch.zeros(n, 4)
        wide[:, :3] = torch.tensor(structure.forces)
        fields["force" if old else "forces"] = wide[:, :3]
    return fields


def write_lmdb(
    path: Path,
    structures: Sequence[Structure],
    style: str = "new",
    length: bool = True,
    change: dict[str, object] | None = None,
) -> Path:
    """Pickled ``Data`` objects under the keys 0, 1, ...; ``change`` replaces fields of all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    protocol = 4 if style == "old" else 5
    with torch_geometric(style) as make:
        values = [pickle.dumps(make(**(data_fields(s, style) | (change or {}))), protocol) for s in structures]
    entries = {str(i).encode(): value for i, value in enumerate(values)}
    if length:
        entries[b"length"] = pickle.dumps(len(structures), protocol)
    put(path, entries)
    return path


def write_aselmdb(path: Path, structures: Sequence[Structure], deleted: Sequence[int] = ()) -> Path:
    """Compressed JSON under the keys 1, 2, ... as fairchem's ASE-LMDB database writes it."""
    entries = {}
    for i, s in enumerate(structures, 1):
        data = {"sid": int(s.sid), "ref_energy": REFERENCE} | ({} if s.fid is None else {"fid": s.fid})
        if s.relaxed_energy is not None:
            data |= {"y_init": s.energy, "y_relaxed": s.relaxed_energy, "pos_relaxed": s.relaxed_positions}
        row = {
            "numbers": s.numbers,
            "positions": s.positions,
            "cell": s.cell,
            "pbc": s.pbc,
            "tags": s.tags,
            "constraints": [{"name": "FixAtoms", "kwargs": {"indices": np.flatnonzero(s.fixed).tolist()}}],
            "calculator": "unknown",
            "energy": s.energy,
            "forces": s.forces,
            "key_value_pairs": {},
            "data": data,
        }
        if i not in deleted:
            entries[str(i).encode()] = zlib.compress(encode(row).encode())
    entries[b"nextid"] = zlib.compress(str(len(structures) + 1).encode())
    if deleted:
        entries[b"deleted_ids"] = zlib.compress(json.dumps(list(deleted)).encode())
    put(path, entries)
    return path


def write_db(path: Path, structures: Sequence[Structure]) -> Path:
    """An ASE database in SQLite."""
    with ase.db.connect(str(path), type="db") as database:
        for s in structures:
            database.write(s.to_ase(), data={"sid": int(s.sid), "fid": s.fid, "ref_energy": REFERENCE})
    return path


def put(path: Path, entries: dict[bytes, bytes]) -> None:
    """Write keys and values into an LMDB that is one file."""
    environment = lmdb.open(str(path), subdir=False, map_size=1 << 28, meminit=False)
    with environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)
