"""Tensor products of centres term by term, as :mod:`equicat.kernels.gpu.centers` reads them."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms (a, b, c) that are not zero of Σ_abcp C[a, b, c, p] w[p] G[a] A[b] H[c], listed by G, by A and by H."""

    coefficients: Float[Tensor, "n_terms"]
    path: Int[Tensor, "n_terms"]
    """p of each."""
    places: Int[Tensor, "n_terms 3"]
    """Components of G, A and H."""
    lists: tuple[Int[Tensor, "n_terms 3"], ...]
    """For each argument: number of the term, and components of the two others in their order."""
    ends: tuple[Int[Tensor, "_"], ...]
    """For each argument: where the terms of each component begin, and where the last ones end."""

    @classmethod
    def of(cls, coefficients: Float[Tensor, "dim_g dim_a dim_h n_paths"]) -> "Terms":
        """The terms of C."""
        found = coefficients.nonzero()
        places, lists, ends = found[:, :3], [], []
        for argument in range(3):
            order = places[:, argument].argsort(stable=True)
            others = [k for k in range(3) if k != argument]
            lists.append(torch.cat([order[:, None], places[order][:, others]], dim=1))
            components = torch.arange(coefficients.shape[argument] + 1)
            ends.append(torch.searchsorted(places[order, argument], components))
        return cls(coefficients[tuple(found.t())], found[:, 3], places.contiguous(), tuple(lists), tuple(ends))

    def to(self, like: Float[Tensor, "..."]) -> "Terms":
        """On the device of this tensor; coefficients also in its precision."""
        path, places = (x.to(like.device) for x in (self.path, self.places))
        lists, ends = (tuple(x.to(like.device) for x in xs) for xs in (self.lists, self.ends))
        return replace(self, coefficients=self.coefficients.to(like), path=path, places=places, lists=lists, ends=ends)
