"""The numbers of a model as one file, in the order in which ``model.cpp`` reads them."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from equicat.kernels.cpu.call import Kernel, block, harmonic_terms
from equicat.models.potential import Potential

VERSION = 1
"""Number of the file's layout (``VERSION`` in ``model.cpp``)."""
ALIGNMENT = 64
"""Bytes at whose multiples arrays begin (``ALIGNMENT`` in ``model.cpp``)."""
EMBEDDINGS = ("times", "plus", "matrices")
"""First steps of a kernel as it numbers them (``Embedding`` in ``tile.h``)."""
LAYER_SIZES = ("n_rows", "n_columns", "n_outputs", "n_irreps", "n_mixed")
LAYER_ARRAYS = ("columns", "outputs", "dims")


@dataclass
class _File:
    """Arrays, each after its length."""

    parts: list[bytes] = field(default_factory=list)

    def add(self, array: Shaped[Tensor, "..."], dtype: torch.dtype) -> None:
        numbers = array.detach().to("cpu", dtype).contiguous().numpy()
        for part in (np.int64(numbers.size).tobytes(), numbers.tobytes()):
            self.parts += [part, bytes(-len(part) % ALIGNMENT)]

    def integers(self, *values: int) -> None:
        self.add(torch.tensor(values, dtype=torch.int64), torch.int64)


def pack(potential: Potential, kernel: Kernel, path: Path) -> None:
    """Write everything that energies and forces depend on.

    Args:
        potential: a model of energies and their gradient, on a CPU.
        kernel: of its network.
        path: file to write.
    """
    file, real, float64, int64 = _File(), potential.dtype, torch.float64, torch.int64
    species = torch.arange(len(potential.elements))
    problem = kernel.problem(potential.network, species)  # as of one atom of each element
    weights = kernel.weights(potential.network, potential.head.mlp.matrices(), block(real))
    matrices, plain = weights.listed(block(real))
    network, radial, repulsion = problem.network, problem.radial, potential.repulsion
    file.integers(
        *(VERSION, real.itemsize, len(species), problem.l_max, problem.channels + -problem.channels % block(real)),
        EMBEDDINGS.index(weights.embedding.operation),
        *(radial.span is not None, radial.n, radial.envelope_p, radial.span or 0),
        *(len(matrices), len(plain)),
        *(network.n_layers, network.n_two_body, network.n_env, network.n_latent, network.features_silu),
        0 if repulsion is None else repulsion.envelope_p,
    )
    factors = (potential.factor(species).double() * potential.head.sum.norm).expand(len(species))
    file.add(torch.tensor([potential.cutoff]), float64)
    file.add(torch.tensor(potential.elements), int64)
    file.add(potential.reference_energies, float64)
    file.add(factors, float64)
    file.add(problem.norm, real)
    file.add(radial.inverse_cutoff, real)
    terms, coefficients = harmonic_terms(problem.l_max, real)
    file.add(terms, int64)
    file.add(coefficients, real)
    for weight in (*matrices, *plain):
        file.integers(*weight.shape)
        file.add(weight, real)
    for layer in problem.owned:
        file.integers(*(layer.sizes.get(name, 0) for name in LAYER_SIZES))
        file.add(layer.terms, int64)
        file.add(layer.coefficients, real)
        for name in LAYER_ARRAYS:
            file.add(layer.arrays.get(name, torch.zeros(0)), int64)
    if repulsion is not None:
        for table in (repulsion.prefactor, repulsion.inverse_length, repulsion.inverse_cutoff):
            file.add(table, float64)
    path.write_bytes(b"".join(file.parts))
