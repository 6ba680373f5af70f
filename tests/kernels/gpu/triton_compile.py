"""Compiles the Triton kernels for a GPU that need not be there; prints what each takes, a line of JSON a kernel.

They are called as ever, but what would launch them only compiles, for the GPU that it is told of. A program of its own:
the tests load the kernels for Triton's interpreter, and the two exclude each other in a process.

``python triton_compile.py CAPABILITY L_MAX CHANNELS DTYPE``, for example ``90 2 32 float32`` for Hopper; with ``whole``
in the place of a type those of products and of whole networks, which know float32 only.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from equicat.kernels.edges import Edges
from equicat.kernels.gpu import (
    activations,
    centers,
    embedding,
    fill,
    geometry,
    hidden,
    products,
    readout,
    sums,
    vectors,
)
from equicat.kernels.gpu import environment as kernels
from equicat.kernels.gpu import tensor_product as triton_tensor_product
from equicat.kernels.irreps import SCALAR, Contraction, Paths, layer_irreps
from equicat.kernels.switches import BY_WEIGHTS, switched
from equicat.kernels.terms import Terms

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class AbsentGPU:
    """Questions that Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def call_all(l_max: int, channels: int, dtype: torch.dtype) -> None:
    """Every kernel, on arrays as they are in the network: w and Y are columns of something larger."""
    n_edges, dim, n_weights = 6, (l_max + 1) ** 2, (l_max + 1) * channels
    first = torch.tensor([0, 4, n_edges])
    a = torch.zeros(n_edges, channels, dtype=dtype)
    w = torch.zeros(n_edges, 2 * n_weights, dtype=dtype)[:, n_weights:]
    y = torch.zeros(n_edges, 8 + dim, dtype=dtype)[:, 8:]
    g = torch.zeros(2, dim, channels, dtype=dtype)
    moves = {"move_w": w.contiguous(), "move_y": y.contiguous(), "move_g": g}
    by = {f"by_{name}": torch.empty(x.shape, dtype=dtype) for name, x in (("a", a), ("w", w), ("y", y), ("g", g))}
    by_w_and_y = {name: by[name] for name in ("by_w", "by_y")}
    kernels.edges(first, w=w, y=y, by_g=by["by_g"])
    kernels.edges(first, w=w, y=y, g=g, by_a=by["by_a"])
    kernels.edges(first, w=w, y=y, g=g, **by_w_and_y)
    kernels.edges(first, a=a, w=w, y=y, g=g, by_g=by["by_g"], **by_w_and_y)
    kernels.edges(first, w=w, y=y, g=g, by_w=by["by_w"], onto_w=by["by_w"])
    kernels.edges(first, a=a, w=w, y=y, g=g, **moves, **by)
    without_y = {name: x for name, x in by.items() if name != "by_y"}
    kernels.edges(first, a=a, w=w, y=y, g=g, onto_w=by["by_w"], **moves, **without_y)
    system = torch.zeros(n_edges, 3, dtype=dtype), torch.zeros(2, n_edges, dtype=torch.long), first
    fill.fill((torch.zeros(8, 3, dtype=dtype), torch.zeros(2, 8, dtype=torch.long), first.new_zeros(4)), system, 8.0)
    _, entering, leaving = layer_irreps(l_max, 3, "full")
    outputs = {out: Paths.build(entering, l_max, out) for out in dict.fromkeys([SCALAR, *leaving])}
    contraction = Contraction.build(entering, outputs)
    v, b = ([a.new_zeros(n_edges, n, channels) for n in sizes] for sizes in (contraction.dims, contraction.widths))
    m = [a.new_zeros(2, len(contraction.coefficients), channels)]
    for argument in range(3):
        triton_tensor_product.tensors(argument, (v, m, b), contraction, first)


def call_whole(l_max: int, channels: int) -> None:
    """Kernels of products of matrices and of whole networks, a wide one and a narrow one."""
    n, width = 256, 64
    edges = Edges(torch.zeros(n, 3), torch.zeros(2, n, dtype=torch.long), torch.zeros(16, dtype=torch.long))
    radial = torch.zeros(4), torch.zeros(8), torch.zeros(8, width), torch.zeros(4, width)
    embed = embedding.Embedding(*radial, 6, l_max, 2)
    x, y = embed(edges)
    embed.back(edges, x, y)
    embed.moving(edges, edges.edge_vec)
    embed.by_weights(edges, edges.edge_vec, x, x)
    narrow = embedding.Embedding(torch.zeros(4), torch.zeros(3), torch.zeros(3, 6), torch.zeros(4, 6), 6, l_max, 2)
    few, _ = narrow(edges)
    narrow.back(edges, few, y)
    narrow.by_weights(edges, edges.edge_vec, few, few)
    layer = hidden.Hidden(torch.zeros(width, width), torch.zeros(width, 160), [96, 64])
    z, found = layer(x, x, [None, x])
    layer.back(x, z, found)
    layer.moving(x, z, z, found)
    layer.moving(x, None, z, found, [None, x])
    sums.sums(z, found, z, found, act=True)
    first = torch.zeros(17, dtype=torch.long)
    readout.read(z, torch.zeros(width), True, first)
    readout.read_moving(z, z, torch.zeros(width), torch.zeros(16), True, first)
    terms = Terms.of(torch.ones(1, 1, 1, 3))
    env = torch.zeros(16, 1, channels)
    centers.contract(centers.G, (env, env, env), torch.zeros(3, channels), torch.zeros(16), terms)
    products.rows([z], products.halves(torch.zeros(width, 256)), products.Extra(True, None, x.new_zeros(n, 256)))
    products.rows(products.Halves.by_row(z), products.halves(torch.zeros(width, 256)))
    products.columns(*(products.Halves.by_chunk(x.new_zeros(n, 128)) for _ in range(2)))
    activations.slope_back(x, x, x)
    centers.by_weights((env, env, env), torch.zeros(16), terms)
    shape = geometry.Shape(torch.zeros(8), torch.ones(8), 6, l_max)
    frequencies = torch.zeros(8, requires_grad=True)
    vectors_ = torch.zeros(n, 3, requires_grad=True)
    results = geometry.geometry(shape, vectors_, torch.zeros(n), frequencies)
    with switched(BY_WEIGHTS, False):
        (by_vectors,) = torch.autograd.grad(sum(r.sum() for r in results), vectors_, create_graph=True)
    torch.autograd.grad(by_vectors.sum(), frequencies)
    atoms = torch.zeros(16, 3).double(), torch.zeros(1, 3, 3).double(), edges.species
    vectors.pair_vectors(*atoms, edges.edge_index, torch.zeros(n, 3, dtype=torch.long), torch.float32)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of memory for those that did not fit."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {"registers": "REG", "spilled": "LOCAL", "stack": "STACK"}
    return {name: int(found[1]) for name, key in names.items() if (found := re.search(rf"{key}:(\d+)", text))}


if __name__ == "__main__":
    capability, l_max, channels = map(int, sys.argv[1:4])
    driver.set_active(AbsentGPU(capability))
    launch = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, warmup: bool, **options: Any) -> None:
        kernel = launch(self, *args, warmup=True, **options)
        found = {"kernel": self.fn.__name__, "bytes": len(kernel.asm["cubin"]), "shared": kernel.metadata.shared}
        print(json.dumps(found | (resources(kernel.asm["cubin"]) if CUOBJDUMP.exists() else {})), flush=True)

    JITFunction.run = compile_only
    if sys.argv[4] == "whole":
        call_whole(l_max, channels)
    else:
        call_all(l_max, channels, getattr(torch, sys.argv[4]))
