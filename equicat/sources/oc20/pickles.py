"""Pickles of OC20 read without running them: tensors, arrays and PyTorch Geometric's ``Data``, and nothing else.

A pickle is a program that may call any function of any module. Here the names it asks for are looked up in one table of
harmless stand-ins; a name that is not in the table ends the reading, before anything of it is imported or called.
Neither PyTorch nor PyTorch Geometric is needed.
"""

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from equicat.errors import InputError

_STORAGES = {"Float": "f4", "Double": "f8", "Half": "f2", "Long": "i8", "Int": "i4", "Short": "i2", "Char": "i1"}
_STORAGES |= {"Byte": "u1", "Bool": "?"}
_TORCH_SAVE_MAGIC = 0x1950A86A20F9469CFC6C
_PLAIN_DTYPE = re.compile(r"(bool|[biufSU?]\d*)")


def load_pickle(data: bytes, source: str) -> Any:
    """The object of a pickle, with arrays for tensors and plain records for ``Data``.

    Args:
        data: the pickle.
        source: file and entry, for messages.

    Raises:
        InputError: if the pickle asks for anything but data (what it asked for is named), or is damaged.
    """
    try:
        return _finished(_Unpickler(BytesIO(data)).load())
    except _Refused as refused:
        raise InputError(
            f"{source}: the pickle asks for {refused}, which is no part of any data; it was refused and nothing of it "
            "was run. Do not open this file with other programs; get it again from its publisher"
        ) from None
    # A broken program for the unpickler can fail in any way; for the user it is one thing.
    except Exception as error:
        raise InputError(f"{source}: damaged pickle ({type(error).__name__}: {error}); get the file again") from error


def load_record(data: bytes, source: str) -> dict[str, Any]:
    """The fields of a pickled ``torch_geometric.data.Data``, of any version; those that are None are left out.

    Up to PyG 1.7 the fields are the attributes of the object itself, from 2.0 on those of its ``GlobalStorage``.

    Raises:
        InputError: if the pickle is refused or damaged, or holds something else.
    """
    record = load_pickle(data, source)
    if not isinstance(record, _Record):
        raise InputError(f"{source}: holds a {type(record).__name__}, expected a torch_geometric Data object")
    store = record.fields.get("_store")
    fields = store.fields.get("_mapping") if isinstance(store, _Record) else record.fields
    if not isinstance(fields, dict):
        raise InputError(f"{source}: a torch_geometric Data object of an unknown form, with {sorted(record.fields)}")
    return {name: _finished(value) for name, value in fields.items() if value is not None}


def load_mapping(path: str | Path) -> dict[str, dict[str, Any]]:
    """``oc20_data_mapping.pkl``: by system id without ``random``, what OC20 tells of its bulk, surface and adsorbate.

    Raises:
        InputError: if the file is missing, refused or damaged, or is no such mapping.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    mapping = load_pickle(data, str(path))
    first = next(iter(mapping.values()), None) if isinstance(mapping, dict) else None
    if not isinstance(first, dict):
        raise InputError(f"{path}: not OC20's data mapping, which has a dictionary for each system id")
    return {str(sid).removeprefix("random"): row for sid, row in mapping.items()}


class _Refused(Exception):
    """The full name of what a pickle asked for."""


class _Record:
    """Stands in for ``Data`` and its parts; keeps the state and does nothing with it."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = dict(state)


class _Dtype:
    """Stands in for ``numpy.dtype``, which can be made to describe more than plain numbers."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: str, *_: bool) -> None:
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.byte_order = state[1]

    def plain(self) -> np.dtype:
        if not _PLAIN_DTYPE.fullmatch(self.code) or self.byte_order not in ("<", ">", "=", "|"):
            raise ValueError(f"not a plain dtype: {self.code!r}")
        return np.dtype(self.code).newbyteorder(self.byte_order)  # type: ignore[arg-type]  # checked above


class _Array:
    """Stands in for an array that is made empty and then given its state."""

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, fortran_order, data = state
        self.value = _array_of(data, dtype, shape, "F" if fortran_order else "C")


class _Function:
    """A function that a pickle may call but not change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function has no state")


class _Storage(tuple):
    """The type and the numbers of a ``torch`` storage."""

    __slots__ = ()


class _Unpickler(pickle.Unpickler):
    """Looks names up in :data:`_ALLOWED`; resolves the storages of ``torch.save``."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, key: Any) -> Any:
        kind, dtype, _, _, n_values, *_ = key
        if kind != "storage" or not isinstance(dtype, str):
            raise ValueError(f"a reference to {kind!r}")
        return dtype, n_values


def _array_of(data: Any, dtype: _Dtype, shape: Sequence[int], order: Any = "C") -> ndarray:
    return np.frombuffer(data, dtype.plain()).reshape(tuple(shape), order=order)


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype.plain())[0]


def _latin1(text: str, encoding: str) -> bytes:
    """The bytes of a text, which is how pickle protocols before 3 write bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes as {encoding!r}")
    return text.encode(encoding)


def _storage(data: bytes) -> _Storage:
    """A storage from the bytes of a ``torch.save`` in its form before 1.6, which is how tensors are pickled.

    Five pickles (magic number, version, machine, storage type, keys), the number of values, the values.
    """
    file = BytesIO(data)
    magic, _, machine, (dtype, n_values), _ = (_Unpickler(file).load() for _ in range(5))
    if magic != _TORCH_SAVE_MAGIC or not machine["little_endian"]:
        raise ValueError("not a storage of a little-endian machine")
    if n_values != int.from_bytes(file.read(8), "little"):
        raise ValueError("a storage of another length than it says")
    return _Storage((np.frombuffer(data, f"<{dtype}", n_values, file.tell()),))


def _tensor(storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any) -> ndarray:
    """An array from a storage; strides are in values, as in PyTorch."""
    (values,) = storage
    if min([offset, *shape, *strides]) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape}, strides {strides}, offset {offset}")
    if 0 in shape:
        return np.zeros(shape, values.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= len(values):
        raise ValueError(f"a tensor that needs value {last} of {len(values)}")
    if strides == tuple(prod(shape[k + 1 :]) for k in range(len(shape))):
        return values[offset : last + 1].reshape(shape)
    bytes_apart = [values.itemsize * stride for stride in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, bytes_apart).copy()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_geometric.data.data", "Data"): _Record,
    ("torch_geometric.data.data", "DataEdgeAttr"): _Record,
    ("torch_geometric.data.data", "DataTensorAttr"): _Record,
    ("torch_geometric.data.storage", "GlobalStorage"): _Record,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch.storage", "_load_from_bytes"): _Function(_storage),
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _Function(_latin1),
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    **{("torch", f"{kind}Storage"): dtype for kind, dtype in _STORAGES.items()},
    # NumPy renamed its core in version 2.
    **{(f"numpy.{core}.multiarray", "scalar"): _Function(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Function(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _Function(_array_of) for core in ("core", "_core")},
}


def _finished(value: Any) -> Any:
    """The array that a stand-in holds; anything else as it is."""
    return value.value if isinstance(value, _Array) else value
