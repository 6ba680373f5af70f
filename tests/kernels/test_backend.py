"""Which version of the forms is used where."""

import sys

import pytest
import torch

from equicat.kernels import backend
from equicat.kernels.cpu import build


def test_triton_on_gpus_where_it_can_compile_the_kernels(monkeypatch):
    triton, gpu = pytest.importorskip("triton", reason="Triton is not installed (Linux only)"), torch.device("cuda")
    assert backend.has_triton(gpu)
    assert not backend.has_triton(torch.device("cpu"))
    with monkeypatch.context() as turned_off:
        turned_off.setenv("EQUICAT_NATIVE", "0")
        assert not backend.has_triton(gpu)
    monkeypatch.setattr(triton, "__version__", "3.4.0+git1234")
    assert not backend.has_triton(gpu)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not backend.has_triton(gpu)


@pytest.mark.skipif(build.compiler() is None, reason="there is no C++ compiler on this machine")
def test_cpp_on_cpus_for_what_is_compiled(monkeypatch):
    x = torch.zeros(1)
    assert backend.forms(x, 2) is backend.forms(x.double(), build.MAX_DEGREE) is backend.CPU_FORMS
    assert backend.forms(x, build.MAX_DEGREE + 1) is None
    assert backend.forms(x.bfloat16(), 2) is None
    monkeypatch.setenv("EQUICAT_NATIVE", "0")
    assert backend.forms(x, 2) is None
