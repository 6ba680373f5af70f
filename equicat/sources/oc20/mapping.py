"""OC20's table of its systems: bulk, surface, adsorbate and anomalies by system id, as compact columns."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from equicat.errors import InputError
from equicat.sources.oc20.pickles import load_mapping
from equicat.sources.packing import Table

_COLUMNS: dict[str, Any] = {
    "bulk_mpid": "",
    "bulk_symbols": "",
    "miller_index": "",
    "shift": float("nan"),
    "top": False,
    "ads_symbols": "",
    "class": -1,
    "anomaly": -1,
}
"""Columns that are joined, with the values of a system that the mapping lacks. ``class``: 0 intermetallic, 1 metalloid,
2 non-metal, 3 halide; ``anomaly``: 0 none, 1 dissociation, 2 desorption, 3 surface reconstruction,
4 misplaced CHCOH."""


@dataclass(frozen=True, eq=False)
class MappingTable(Table):
    """Columns of the systems, sorted by id; small enough to send to every worker."""

    sids: Int[ndarray, "n_systems"]
    values: Mapping[str, ndarray]
    checksum: str = ""
    """SHA-256 of the file that it was read from."""

    @property
    def columns(self) -> list[str]:
        return list(self.values)

    def __contains__(self, sid: str) -> bool:
        return self._position(sid) is not None

    def row(self, sid: str) -> dict[str, Any]:
        """The columns of a system; ``""``, -1 and NaN where the mapping does not have it."""
        i = self._position(sid)
        if i is None:
            return {name: _COLUMNS[name] for name in self.values}
        return {name: values[i].item() for name, values in self.values.items()}

    def _position(self, sid: str) -> int | None:
        if not sid.isdecimal():
            return None
        i = int(np.searchsorted(self.sids, int(sid)))
        return i if i < len(self.sids) and self.sids[i] == int(sid) else None


def read_mapping(path: str | Path) -> MappingTable:
    """``oc20_data_mapping.pkl``, of any of its versions, as a table.

    Raises:
        InputError: if the file is missing, refused or damaged, or is no such mapping.
    """
    mapping = load_mapping(path)
    first = next(iter(mapping.values()))
    names = [name for name in _COLUMNS if name in first]
    try:
        sids = np.array([int(sid) for sid in mapping], dtype=np.int64)
        order = np.argsort(sids)
        values = {}
        for name in names:
            column = [row[name] for row in mapping.values()]
            if name == "miller_index":
                column = [" ".join(str(int(h)) for h in indices) for indices in column]
            values[name] = np.array(column, dtype=type(_COLUMNS[name]))[order]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not OC20's data mapping ({error})") from error
    with Path(path).open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return MappingTable(sids[order], values, checksum)
