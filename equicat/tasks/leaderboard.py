"""Files for OC20's leaderboards: the arrays of a submission, and a checker that reads one as the leaderboard would.

A file of one split has ``ids``, ``energy`` and, for S2EF, ``forces`` and ``chunk_idx``. A submission has them of all
four splits, under names that begin with ``id_``, ``ood_ads_``, ``ood_cat_`` and ``ood_both_``. There are two variants
of the forces: EvalAI's file holds those of free atoms, that of the present leaderboard those of all atoms. IS2RS, which
only EvalAI had, has ``ids``, ``pos`` and ``chunk_idx``.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray

from equicat.errors import InputError
from equicat.files import replacing_file

LEADERBOARD_SPLITS = ("id", "ood_ads", "ood_cat", "ood_both")
VARIANTS = ("free", "all")
"""Which atoms' forces an S2EF file holds."""
DTYPES = ("float16", "float32", "float64")

Arrays = dict[str, Shaped[ndarray, "_ ..."]]
"""Arrays of a file by name, with rows for structures or atoms."""


def s2ef_arrays(
    ids: Shaped[ndarray, "n"],
    energy: Float[ndarray, "n"],
    forces: Float[ndarray, "n_atoms 3"],
    n_atoms: Int[ndarray, "n"],
    fixed: Bool[ndarray, "n_atoms"],
    *,
    atoms: str = "free",
    dtype: str = "float16",
) -> Arrays:
    """The arrays of one S2EF split, rows in the string order of the ids.

    Args:
        ids: ``<sid>_<fid>`` of each structure.
        energy: adsorption energies (eV).
        forces: of all atoms (eV/Å), structure after structure.
        n_atoms: of each structure.
        fixed: which atoms a relaxation does not move.
        atoms: ``free`` leaves fixed atoms out (EvalAI), ``all`` keeps them (the present leaderboard).
        dtype: of energies and forces; the leaderboard's own programs write float16.

    Returns:
        ``ids``, ``energy`` [n, 1], ``forces`` [atoms, 3], and ``chunk_idx`` [n - 1], where the next structure begins.

    Raises:
        InputError: for missing or repeated ids, numbers that are not finite, or another variant or dtype.
    """
    if atoms not in VARIANTS:
        raise InputError(f"atoms is {atoms!r}; it must be one of {', '.join(VARIANTS)}")
    arrays, order = _ordered(ids, energy, dtype)
    parts = np.split(np.arange(len(forces)), np.cumsum(n_atoms)[:-1])
    rows = [parts[i][~fixed[parts[i]]] if atoms == "free" else parts[i] for i in order]
    arrays["forces"] = _cast("forces", np.concatenate([forces[r] for r in rows]), dtype)
    arrays["chunk_idx"] = _starts(rows)
    return arrays


def is2re_arrays(ids: Shaped[ndarray, "n"], energy: Float[ndarray, "n"], *, dtype: str = "float16") -> Arrays:
    """The arrays of one IS2RE split, rows in the string order of the ids.

    Args:
        ids: ``<sid>`` of each system.
        energy: relaxed adsorption energies (eV).
        dtype: of the energies.

    Returns:
        ``ids`` and ``energy`` [n, 1].

    Raises:
        InputError: for missing or repeated ids, numbers that are not finite, or another dtype.
    """
    return _ordered(ids, energy, dtype)[0]


def is2rs_arrays(
    ids: Shaped[ndarray, "n"], positions: Float[ndarray, "n_atoms 3"], n_atoms: Int[ndarray, "n"]
) -> Arrays:
    """The arrays of one IS2RS split, rows in the string order of the ids.

    Args:
        ids: ``<sid>`` of each system.
        positions: relaxed, of all atoms (Å), structure after structure.
        n_atoms: of each structure.

    Returns:
        ``ids``, ``pos`` [atoms, 3] (float64) and ``chunk_idx`` [n - 1], where the next structure begins.

    Raises:
        InputError: for missing or repeated ids, or positions that are not finite.
    """
    texts, order = _in_order(ids)
    parts = np.split(positions, np.cumsum(n_atoms)[:-1])
    rows = [parts[i] for i in order]
    return {"ids": texts, "pos": _cast("pos", np.concatenate(rows), "float64"), "chunk_idx": _starts(rows)}


def write_submission(path: str | Path, splits: Mapping[str, Arrays]) -> None:
    """Write the arrays of one split (under the name ``""``), or of all four, as an ``.npz`` file.

    Raises:
        InputError: if they are neither, or the name does not end in ``.npz``.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise InputError(f"{path}: a submission is an .npz file")
    if set(splits) not in ({""}, set(LEADERBOARD_SPLITS)):
        raise InputError(
            f"a submission holds one split or all of {', '.join(LEADERBOARD_SPLITS)}; got {', '.join(splits)}"
        )
    arrays = {f"{split}_{name}".lstrip("_"): a for split, values in splits.items() for name, a in values.items()}
    with replacing_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def check_submission(path: str | Path) -> str:
    """Read a leaderboard file, of one split or of all four, and say what is in it.

    Raises:
        InputError: naming the array and what is wrong with it.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as an .npz file without pickles ({error})") from error
    prefixes = [""] if "ids" in arrays else [f"{split}_" for split in LEADERBOARD_SPLITS]
    lines, known = [], set()
    for prefix in prefixes:
        names = {key: f"{prefix}{key}" for key in ("ids", "energy", "forces", "pos", "chunk_idx")}
        present = {key: arrays[name] for key, name in names.items() if name in arrays}
        known |= {names[key] for key in present}
        lines.append(_checked(path, prefix, present))
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise InputError(f"{path}: has {', '.join(unknown)}, which the leaderboard does not know")
    if len({line.split(":")[1].split(",")[0] for line in lines}) > 1:
        raise InputError(f"{path}: splits of two tasks in one file")
    return "\n".join([f"{path}:", *lines])


def _checked(path: Path, prefix: str, arrays: Mapping[str, ndarray]) -> str:
    where = f"{path}: {prefix}"
    vectors = "forces" if "forces" in arrays else "pos" if "pos" in arrays else None
    is_s2ef = vectors != "pos" and (vectors is not None or "chunk_idx" in arrays)
    for key in (
        ("ids", "forces", "chunk_idx", "energy") if is_s2ef else ("ids", "energy" if vectors is None else "chunk_idx")
    ):
        if key not in arrays:
            found = ", ".join(prefix + name for name in arrays) or "nothing"
            raise InputError(f"{where}{key} is missing{', which S2EF needs' * is_s2ef}; found {found}")
    ids = arrays["ids"]
    _check_ids(where, ids, r"\d+_\d+" if is_s2ef else r"\d+")
    tasks, dtypes = ["S2EF"] if is_s2ef else [], {}
    if "energy" in arrays:
        energy = arrays["energy"]
        if energy.shape not in ((len(ids),), (len(ids), 1)) or energy.dtype.kind != "f":
            raise InputError(f"{where}energy must be real [{len(ids)}] or [{len(ids)}, 1], found {_form(energy)}")
        _require_finite(f"{where}energy", energy)
        tasks, dtypes = tasks or ["IS2RE"], {"energy": energy.dtype}
    line = f"{len(ids):,} {'structures' if is_s2ef else 'systems'}"
    if vectors is not None:
        tasks = tasks if is_s2ef else [*tasks, "IS2RS"]
        _check_vectors(where, vectors, arrays, len(ids))
        line += f", {'forces' if is_s2ef else 'positions'} of {len(arrays[vectors]):,} atoms"
        dtypes[vectors] = arrays[vectors].dtype
    kinds = ", ".join(dict.fromkeys(map(str, dtypes.values())))
    return f"  {prefix.rstrip('_') or 'one split'}: {' and '.join(tasks)}, {line}, {kinds}"


def _check_ids(where: str, ids: ndarray, form: str) -> None:
    if ids.ndim != 1 or ids.dtype.kind != "U":
        raise InputError(f"{where}ids must be texts [n], found {ids.dtype} {list(ids.shape)}")
    if not (ids[1:] > ids[:-1]).all():
        k = int(np.argmin(ids[1:] > ids[:-1]))
        problem = "repeated" if ids[k + 1] == ids[k] else "out of order"
        bad = str(ids[k + 1])
        raise InputError(f"{where}ids: {bad!r} is {problem} (row {k + 1}); rows go in the string order of the ids")
    odd = [i for i in ids.tolist() if not re.fullmatch(form, i)]
    if odd:
        raise InputError(f"{where}ids: {odd[0]!r} is not <sid>{'_<fid>' if '_' in form else ''} in digits")


def _check_vectors(where: str, name: str, arrays: Mapping[str, ndarray], n: int) -> None:
    vectors, chunks = arrays[name], arrays["chunk_idx"]
    if vectors.ndim != 2 or vectors.shape[1] != 3 or vectors.dtype.kind != "f":
        raise InputError(f"{where}{name} must be real [atoms, 3], found {_form(vectors)}")
    _require_finite(f"{where}{name}", vectors)
    if chunks.shape != (n - 1,) or chunks.dtype.kind not in "iu":
        raise InputError(f"{where}chunk_idx must be integers [{n - 1}], found {_form(chunks)}")
    if n > 1 and (np.any(np.diff(chunks) < 0) or chunks[0] < 0 or chunks[-1] > len(vectors)):
        raise InputError(f"{where}chunk_idx must ascend from 0 to at most {len(vectors)}, the rows of {name}")


def _ordered(ids: Shaped[ndarray, "n"], energy: Float[ndarray, "n"], dtype: str) -> tuple[Arrays, Int[ndarray, "n"]]:
    if dtype not in DTYPES:
        raise InputError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    texts, order = _in_order(ids)
    return {"ids": texts, "energy": _cast("energy", np.asarray(energy)[order, None], dtype)}, order


def _in_order(ids: Shaped[ndarray, "n"]) -> tuple[Shaped[ndarray, "n"], Int[ndarray, "n"]]:
    texts = np.asarray(ids).astype(str)
    if len(texts) == 0 or "" in texts or len(np.unique(texts)) < len(texts):
        raise InputError("the leaderboard needs a different id for every structure: info keys sid and fid")
    order = np.argsort(texts)
    return texts[order], order


def _starts(rows: Sequence[ndarray]) -> Int[ndarray, "n_minus_1"]:
    return np.cumsum([len(r) for r in rows], dtype=np.int64)[:-1]


def _cast(name: str, values: ndarray, dtype: str) -> ndarray:
    _require_finite(name, values)
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    _require_finite(f"{name} as {dtype}", cast)
    return cast


def _require_finite(name: str, values: ndarray) -> None:
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise InputError(f"{name} is not finite in row {row}")


def _form(values: ndarray) -> str:
    return f"{values.dtype} {list(values.shape)}"
