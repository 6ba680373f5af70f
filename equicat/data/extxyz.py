"""Extended XYZ, where ASE's reader and writer need help: entries of the comment line, and what to say of bad frames.

ASE reads and writes the format. It refuses a whole frame for a ``stress`` in an unusual form, gives some keys a meaning
of its own when it reads them, and writes what it cannot read again.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from io import StringIO
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.io.extxyz import (
    key_val_dict_to_str,
    key_val_str_to_dict,
    per_config_properties,
    read_extxyz,
)

MARK = "\ue000"
"""A character of the private use area, which stands before the names of tensors while ASE parses a comment line."""

TENSORS = ("stress", "virial")
"""Entries that ASE's parser insists are nine numbers."""

SET_ASIDE = {*TENSORS, *per_config_properties} - {"energy", "free_energy", "magmom"}
"""Entries that ASE makes an array of numbers of, or fails."""

RESERVED = {"Lattice", "Properties", "pbc", "sid", "fid", "relaxed_energy", *TENSORS, *per_config_properties}
"""Names of entries that a reader takes for something else than what a user has put into ``info``."""


def atoms_of_text(frame: str) -> Atoms:
    """The atoms of one frame; what it has under ``stress`` and ``virial``, in whatever form, is in ``info``."""
    aside: dict[str, Any] = {}

    def parse(comment: str) -> dict[str, Any]:
        marked = key_val_str_to_dict(re.sub("|".join(TENSORS), rf"{MARK}\g<0>", comment))
        entries = {key.replace(MARK, ""): _unmarked(value) for key, value in marked.items()}
        aside.update({key: entries.pop(key) for key in SET_ASIDE & set(entries)})
        return entries

    (atoms,) = read_extxyz(StringIO(frame), index=slice(None), properties_parser=parse)
    atoms.info.update({key: aside[key] for key in TENSORS if key in aside})
    return atoms


def _unmarked(value: Any) -> Any:
    return value.replace(MARK, "") if isinstance(value, str) else value


def advice_on(error: Exception, file_format: str) -> str:
    """Advice on a frame that cannot be read, for the end of a message."""
    if file_format == "extxyz" and not isinstance(error, EOFError):
        symbol = error.args[0] if isinstance(error, KeyError) and error.args else None
        if isinstance(symbol, str):
            return f"{symbol!r} is no chemical symbol{_symbol_meant(symbol)}"
        if re.search(r"'[-+.\d]+[dD][-+]?\d+'", str(error)):
            return "write exponents with E, not D"
        if isinstance(error, UnicodeDecodeError):
            return "save the file as UTF-8 text"
        return "repair this frame, or cut it out"
    return "is the file complete? Repair it or cut it before this frame"


def _symbol_meant(symbol: str) -> str:
    if symbol in ("D", "T"):
        return "; write H, masses of isotopes are not in a potential"
    letters = re.match(r"[A-Z][a-z]?", symbol)
    meant = letters[0] if letters and letters[0] in atomic_numbers else symbol[:1]
    return f"; write {meant}" if meant in atomic_numbers and meant != symbol else ""


def entries_to_write(info: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Entries that read back as they are, and in words what had to be done to the others.

    Args:
        info: entries of a structure; only texts, numbers and truth values can be kept.
    """
    entries: dict[str, Any] = {}
    changes = []
    for key, value in info.items():
        plain = value.item() if isinstance(value, np.generic) else value
        if not isinstance(plain, str | bool | int | float):
            changes.append(f"entry {key!r} is left out, it is neither text nor number")
            continue
        name = key
        if not _can_be_written(key):
            name = f"info_{re.sub(r'[^A-Za-z0-9_]+', '_', str(key))}"
            while name in info or name in entries:
                name += "_"
            changes.append(f"entry {key!r} is written as {name!r}, the format reads that name in its own way")
        entries[name] = value_to_write(name, plain)
    return entries, changes


@cache
def _can_be_written(key: Any) -> bool:
    if not isinstance(key, str) or key in RESERVED or not key.isprintable():
        return False
    among_others = {"before": 1, key: 2, "after": 3}
    return key_val_str_to_dict(key_val_dict_to_str(among_others)) == among_others


def value_to_write(key: str, value: Any) -> Any:
    """``value`` such that it reads back as it is: the texts ``F`` and ``007`` would become False and 7."""
    if not isinstance(value, str):
        return value
    if value.isprintable() and not value.startswith("_JSON"):
        back = key_val_str_to_dict(key_val_dict_to_str({key: value})).get(key)
        if isinstance(back, str) and back == value:
            return value
    # ASE's writer escapes quotes only, its reader takes away one level of every backslash.
    return "_JSON " + json.dumps(value).replace("\\", "\\\\")
