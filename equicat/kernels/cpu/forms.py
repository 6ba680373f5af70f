"""The forms of :mod:`equicat.kernels.forms` in C++ (``forms.cpp``); the same functions as the Triton kernels have."""

import ctypes
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.kernels.cpu import build
from equicat.kernels.irreps import Contraction

POINTER = ctypes.c_void_p


class _Rows(ctypes.Structure):
    _fields_ = (("p", POINTER), ("step", ctypes.c_int64))


class _EdgeForm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_centers", "channels", "n_degrees", "n_threads")),
        ("first_edge", POINTER),
        *((name, _Rows) for name in ("a", "w", "y", "g", "move_w", "move_y", "move_g", "by_a", "by_w", "by_y", "by_g")),
    )


class _TensorForm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("n_centers", "channels", "n_irreps", "n_threads", "by")),
        *((name, POINTER) for name in ("first_edge", "irreps", "columns", "v", "m", "b")),
    )


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled forms for numbers of that type, or None."""
    return build.load("forms", dtype, (_EdgeForm, _TensorForm))


def edges(first: Int[Tensor, "n_ends"], **matrices: Float[Tensor, "..."]) -> None:
    """Write derivatives of F(a, w, Y, G) = Σ_e Σ_lu a[e, u] w[e, l, u] Σ_m Y[e, lm] G[i(e), lm, u].

    Args:
        first: where the edges of each centre begin, and where the last ones end.
        matrices: arguments ``w``, ``y``, and if the derivatives need them ``a`` (absent means 1) and ``g``; contiguous
            ``by_a``, ``by_w``, ``by_y``, ``by_g`` for the derivatives that are asked for; with ``move_w``, ``move_y``
            and ``move_g``, how all four change when w, Y and G move is written instead.
    """
    n_degrees = math.isqrt(matrices["y"].shape[1])
    kept = {name: _matrix(x) for name, x in matrices.items()}
    rows = {name: _Rows(x.data_ptr(), x.stride(0)) for name, x in kept.items()}
    sizes = len(first) - 1, kept["w"].shape[1] // n_degrees, n_degrees, torch.get_num_threads()
    form = _EdgeForm(*sizes, first.data_ptr(), **rows)
    build.call(_loaded(kept["w"]), "changes" if "move_w" in matrices else "derivatives", form)


def tensors(
    by: int, arguments: Sequence[Sequence[Float[Tensor, "..."]]], contraction: Contraction, first: Int[Tensor, "n_ends"]
) -> None:
    """Write the derivative of F(V, M, B) = Σ_e Σ_cku B[e, c, u] V[e, k, u] M[i(e), c, k, u] by one argument.

    Args:
        by: 0 (V), 1 (M) or 2 (B), the argument in whose place the derivative is written.
        arguments: V by irrep, M alone, and B by output, each tensor [n_edges or n_atoms, …, channels], contiguous.
        contraction: which columns and components there are.
        first: where the edges of each centre begin, and where the last ones end.
    """
    v, (m,), b = ((POINTER * len(argument))(*(x.data_ptr() for x in argument)) for argument in arguments)
    like = arguments[1][0]
    form = _TensorForm(
        *(len(first) - 1, like.shape[2], len(contraction.dims), torch.get_num_threads(), by),
        *(x.data_ptr() for x in (first, contraction.irreps, contraction.columns)),
        *(ctypes.addressof(v), m, ctypes.addressof(b)),
    )
    build.call(_loaded(like), "tensor_derivative", form)


def _loaded(like: Tensor) -> ctypes.CDLL:
    found = library(like.dtype)
    assert found is not None
    return found


def _matrix(x: Tensor) -> Float[Tensor, "n_rows n_columns"]:
    """Rows of edges, or rows (atom, lm); within a row entries are neighbours."""
    return (x if x.stride(-1) == 1 else x.contiguous()).flatten(0, -2)
