"""Which version of an operation runs where: C++ on CPUs, Triton on GPUs, PyTorch's operators wherever these cannot.

``EQUICAT_NATIVE=0`` in the environment turns C++ and Triton off. Nothing else reads it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.kernels.cpu import build
from equicat.kernels.cpu import forms as cpu_forms

MIN_TRITON = (3, 5)
"""The version that comes with PyTorch 2.9; 3.3 cannot compile the kernels."""


@dataclass(frozen=True)
class Forms:
    """One version of the forms of :mod:`equicat.kernels.forms`, which knows nothing of autograd."""

    edges: Callable[..., None]
    """Derivatives of environment and read-out; see :func:`equicat.kernels.cpu.forms.edges`."""
    tensors: Callable[..., None]
    """Derivatives of tensor products; see :func:`equicat.kernels.cpu.forms.tensors`."""


def enabled() -> bool:
    """Whether C++ and Triton may be used at all."""
    return os.environ.get("EQUICAT_NATIVE") != "0"


def has_triton(device: torch.device) -> bool:
    """Whether the Triton kernels run there: on a GPU, with a Triton that compiles them."""
    if device.type != "cuda" or not enabled():
        return False
    try:
        import triton
    except ImportError:
        return False
    return tuple(map(int, triton.__version__.split(".")[:2])) >= MIN_TRITON


def forms(like: Float[Tensor, "..."], l_max: int) -> Forms | None:
    """The fastest version of the forms for tensors like this and harmonics up to this degree; None: the plain one."""
    if has_triton(like.device):
        return triton_forms()
    if like.device.type == "cpu" and enabled() and l_max <= build.MAX_DEGREE and cpu_forms.library(like.dtype):
        return CPU_FORMS
    return None


CPU_FORMS = Forms(cpu_forms.edges, cpu_forms.tensors)


def triton_forms() -> Forms:
    """The forms of Triton, which is imported only here."""
    from equicat.kernels.gpu import environment, tensor_product

    return Forms(environment.edges, tensor_product.tensors)
