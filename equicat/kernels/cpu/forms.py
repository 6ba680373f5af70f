"""The forms of :mod:`equicat.kernels.forms` in C++ (``forms.cpp``); the same functions as the Triton kernels have."""

import ctypes
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


def environment(
    w: Float[Tensor, "n_edges n_weights"], y: Float[Tensor, "n_edges dim_env"], first: Int[Tensor, "n_ends"]
) -> Float[Tensor, "n_atoms dim_env channels"]:
    """∂F/∂G at a = 1, Σ_e w[e, l, u] Y[e, lm] over the edges of each centre."""
    n_degrees = _n_degrees(y)
    by_g = w.new_empty(len(first) - 1, y.shape[1], w.shape[1] // n_degrees)
    _run("derivatives", first, by_g.shape[2], n_degrees, w=w, y=y, by_g=by_g)
    return by_g


def read_out(
    w: Float[Tensor, "n_edges n_weights"],
    y: Float[Tensor, "n_edges dim_env"],
    g: Float[Tensor, "n_atoms dim_env channels"],
    first: Int[Tensor, "n_ends"],
) -> Float[Tensor, "n_edges channels"]:
    """∂F/∂a."""
    by_a = w.new_empty(len(w), g.shape[2])
    _run("derivatives", first, g.shape[2], _n_degrees(y), w=w, y=y, g=g, by_a=by_a)
    return by_a


def gradient(
    a: Float[Tensor, "n_edges channels"] | None,
    w: Float[Tensor, "n_edges n_weights"],
    y: Float[Tensor, "n_edges dim_env"],
    g: Float[Tensor, "n_atoms dim_env channels"],
    first: Int[Tensor, "n_ends"],
) -> tuple[Tensor, ...]:
    """∂F/∂w and ∂F/∂Y, and with ``a`` (None means 1) also ∂F/∂G."""
    by_w, by_y = w.new_empty(w.shape), y.new_empty(y.shape)
    by_g = None if a is None else g.new_empty(g.shape)
    _run("derivatives", first, g.shape[2], _n_degrees(y), a=a, w=w, y=y, g=g, by_w=by_w, by_y=by_y, by_g=by_g)
    return (by_w, by_y) if by_g is None else (by_w, by_y, by_g)


def change(
    arguments: tuple[Tensor, Tensor, Tensor, Tensor], moves: tuple[Tensor, Tensor, Tensor], first: Int[Tensor, "n_ends"]
) -> tuple[Tensor, ...]:
    """How ∂F/∂(a, w, Y, G) at these arguments change when (w, Y, G) move."""
    names, written = ("a", "w", "y", "g"), tuple(x.new_empty(x.shape) for x in arguments)
    rows = dict(zip(names, arguments, strict=True)) | {f"by_{n}": x for n, x in zip(names, written, strict=True)}
    rows |= {f"move_{n}": x for n, x in zip(names[1:], moves, strict=True)}
    _run("changes", first, arguments[0].shape[1], _n_degrees(arguments[2]), **rows)
    return written


def derivative(
    by: int, arguments: Sequence[Sequence[Tensor]], contraction: Contraction, first: Int[Tensor, "n_ends"]
) -> tuple[Tensor, ...]:
    """∂F by one of V, M and B, from the other two; see :func:`equicat.kernels.gpu.tensor_product.derivative`."""
    v, _, b = arguments
    like, n_edges, n_atoms = (v or b)[0], len((v or b)[0]), len(first) - 1
    channels = like.shape[2]
    sizes = (contraction.dims, [len(contraction.coefficients)], contraction.widths)
    written = tuple(like.new_empty(n_atoms if by == 1 else n_edges, n, channels) for n in sizes[by])
    tensors = [written if k == by else [x.contiguous() for x in argument] for k, argument in enumerate(arguments)]
    pointers = [(POINTER * len(argument))(*(x.data_ptr() for x in argument)) for argument in tensors]
    form = _TensorForm(
        *(n_atoms, channels, len(contraction.dims), torch.get_num_threads(), by),
        *(x.data_ptr() for x in (first, contraction.irreps, contraction.columns)),
        *(ctypes.addressof(pointers[0]), tensors[1][0].data_ptr(), ctypes.addressof(pointers[2])),
    )
    build.call(_loaded(like), "tensor_derivative", form)
    return written


def _run(function: str, first: Int[Tensor, "n_ends"], channels: int, n_degrees: int, **matrices: Tensor | None) -> None:
    """Call ``derivatives`` or ``changes``; ``matrices`` by their names in ``EdgeForm``."""
    kept = {name: _matrix(x) for name, x in matrices.items() if x is not None}
    rows = {name: _Rows(x.data_ptr(), x.stride(0)) for name, x in kept.items()}
    form = _EdgeForm(len(first) - 1, channels, n_degrees, torch.get_num_threads(), first.data_ptr(), **rows)
    build.call(_loaded(kept["w"]), function, form)


def _loaded(like: Tensor) -> ctypes.CDLL:
    found = library(like.dtype)
    assert found is not None
    return found


def _matrix(x: Tensor) -> Float[Tensor, "n_rows n_columns"]:
    """Rows of edges, or rows (atom, lm); within a row entries are neighbours."""
    return (x if x.stride(-1) == 1 else x.contiguous()).flatten(0, -2)


def _n_degrees(y: Float[Tensor, "n_edges dim_env"]) -> int:
    return round(y.shape[1] ** 0.5)
