"""Sums over pairs of edges that meet at an atom, the triplets of directional message passing, without a list of them.

An angular basis in Legendre polynomials separates: P_l(û·v̂) = Σ_m Y_lm(û) Y_lm(v̂) / (2l+1) in ``component``
normalisation. A sum over triplets is then two sums over edges with the atom in between, linear in the number of edges
where a list of triplets is quadratic in the number of neighbours. The term in which both edges are the same one belongs
to no triplet and is known exactly (P_l(1) = 1), so it is taken off. No angle is ever computed, and collinear atoms,
where its derivative does not exist, need no care.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from equicat.errors import InputError
from equicat.kernels.harmonics import spherical_harmonics
from equicat.networks.baselines.padding import chunks

_DIRECTIONS = ((0.5412, 0.7853, 0.3003), (0.2717, -0.4143, 0.8686), (-0.8126, 0.1931, 0.5499))
"""Any directions: only if two images of a pair are equally far along one of them by accident, the next is tried."""
_SAME = 1e-3
"""Å; two pair vectors that differ by less belong to the same pair."""


def reverse_edges(
    edge_vec: Float[Tensor, "n_edges 3"], edge_index: Int[Tensor, "2 n_edges"], n_atoms: int
) -> Int[Tensor, "n_edges"]:
    """For each edge i → j the position of j → i that has the opposite vector; several images are told apart.

    Raises:
        InputError: if a pair is there in one direction only, as in neighbour lists cut to the nearest few.
    """
    reverse = _opposite(edge_vec, edge_index, n_atoms)
    alone = int((reverse < 0).sum())
    if alone:
        raise InputError(
            f"{alone} of {len(reverse)} pairs of the neighbour list are there in one direction only, which this model "
            "cannot use; build the list without max_neighbors"
        )
    return reverse


def once_per_pair(
    edge_vec: Float[Tensor, "n_edges 3"], edge_index: Int[Tensor, "2 n_edges"], n_atoms: int
) -> tuple[Int[Tensor, "n_pairs"], Int[Tensor, "n_edges"]]:
    """One edge of each pair i ⇄ j, and for each edge the position of its pair; for what depends on distance only.

    An edge that is there in one direction only is a pair of its own.
    """
    edges = torch.arange(len(edge_vec), device=edge_vec.device)
    reverse = _opposite(edge_vec, edge_index, n_atoms)
    first = torch.minimum(edges, reverse.where(reverse >= 0, edges))
    kept = first == edges
    return kept.nonzero()[:, 0], (kept.cumsum(0) - 1)[first]


def _opposite(
    edge_vec: Float[Tensor, "n_edges 3"], edge_index: Int[Tensor, "2 n_edges"], n_atoms: int
) -> Int[Tensor, "n_edges"]:
    """For each edge the position of its reverse, −1 where there is none.

    Edges are sorted together with their own reversals, so that an edge stands beside the reversal of its reverse.
    """
    n_edges, vec = len(edge_vec), edge_vec.detach()
    keys = torch.cat([edge_index[0] * n_atoms + edge_index[1], edge_index[1] * n_atoms + edge_index[0]])
    reverse = torch.full((n_edges,), -1, device=vec.device)
    for direction in _DIRECTIONS:
        along = vec @ vec.new_tensor(direction)
        order = _order(keys, torch.cat([along, -along]))
        one, other = order[:-1], order[1:]
        i, j = one % n_edges, other % n_edges
        opposite = (keys[one] == keys[other]) & ((one < n_edges) != (other < n_edges))
        opposite &= ((vec[i] + vec[j]).abs() <= _SAME).all(1)
        i, j = i[opposite], j[opposite]
        reverse[i], reverse[j] = j, i
        if not (reverse < 0).any():
            break
    return reverse


def _order(pair: Int[Tensor, "n_edges"], along: Float[Tensor, "n_edges"]) -> Int[Tensor, "n_edges"]:
    """Edges sorted by pair of atoms, then along the direction."""
    by_length = along.argsort()
    return by_length[pair[by_length].argsort(stable=True)]


class AngularSums:
    """Y_l0(∠(e, f)) summed over the edges f ≠ e that have the centre of e, for the edges of one batch.

    Args:
        edge_vec: Å.
        center: of each edge, in ascending order.
        n_atoms: of the batch.
        n_spherical: degrees l = 0 … n_spherical − 1.
        n_channels: that a sum will have; decides how many edges are worked on at a time.
    """

    def __init__(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        center: Int[Tensor, "n_edges"],
        n_atoms: int,
        n_spherical: int,
        n_channels: int,
    ):
        r = torch.linalg.vector_norm(edge_vec, dim=1, keepdim=True)
        harmonics = spherical_harmonics(n_spherical - 1, edge_vec / r)
        self.sizes = [2 * degree + 1 for degree in range(n_spherical)]
        # Y_l0(θ) = sqrt((2l+1) / 4π) P_l(cos θ).
        self.at_zero = edge_vec.new_tensor([math.sqrt(n / (4 * math.pi)) for n in self.sizes])
        weights = torch.cat([at_zero.expand(n) / n for at_zero, n in zip(self.at_zero, self.sizes, strict=True)])
        self.pieces, self.position = chunks(center, n_atoms, n_spherical * n_channels + harmonics.shape[1])
        self.harmonics = [piece.pad(harmonics[piece.edges]) for piece in self.pieces]
        self.weighted = [y * weights for y in self.harmonics]

    def each_degree(self, x: Float[Tensor, "n_edges n_channels"]) -> Float[Tensor, "n_edges n_spherical n_channels"]:
        """S[e, l] = Σ_f Y_l0(∠(e, f)) x[f]."""
        out = []
        for piece, y, weighted in zip(self.pieces, self.harmonics, self.weighted, strict=True):
            moments = (y.transpose(1, 2) @ piece.pad(x[piece.edges])).split(self.sizes, dim=1)
            by_degree = weighted.split(self.sizes, dim=2)
            sums = torch.stack([w @ a for w, a in zip(by_degree, moments, strict=True)], dim=2)
            out.append(piece.unpad(sums))
        return self._joined(out) - x[:, None, :] * self.at_zero[:, None]

    def over_degrees(self, x: Float[Tensor, "n_edges n_spherical n_channels"]) -> Float[Tensor, "n_edges n_channels"]:
        """S[e] = Σ_l Σ_f Y_l0(∠(e, f)) x[f, l]; the adjoint of :meth:`each_degree`."""
        out = []
        for piece, y, weighted in zip(self.pieces, self.harmonics, self.weighted, strict=True):
            padded = piece.pad(x[piece.edges]).unbind(2)
            by_degree = y.split(self.sizes, dim=2)
            moments = torch.cat([a.transpose(1, 2) @ b for a, b in zip(by_degree, padded, strict=True)], dim=1)
            out.append(piece.unpad(weighted @ moments))
        return self._joined(out) - (self.at_zero @ x)

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        return pieces[0] if self.position is None else torch.cat(pieces).index_select(0, self.position)
