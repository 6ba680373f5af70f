"""The checks of ``equicat.testing`` pass for a sound potential; a broken one fails exactly where it is broken."""

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers
from e3nn import o3
from jaxtyping import Float
from torch import Tensor, nn

from equicat import testing
from equicat.data.batch import Batch
from equicat.models.model import Prediction

CHECKS = [name for name in testing.__all__ if name.startswith("check_")]
CHECKS = sorted(set(CHECKS) - {"check_all", "check_equivariance", "check_clean_slab_is_zero"})


class Pair(nn.Module):
    """Morse times a smooth envelope, half of every pair for each of its atoms: obeys everything."""

    elements = (atomic_numbers["O"], atomic_numbers["Cu"], atomic_numbers["Pt"])
    cutoff = 4.0

    def __init__(self) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(0.7))

    def forward(self, batch: Batch, forces: bool = True) -> Prediction:
        positions = batch.positions
        if forces:
            positions = positions.detach().requires_grad_()
        moving = Batch(**{**vars(batch), "positions": positions})
        atom_energies = self.atom_energies(moving)
        energy = self.system_energies(atom_energies, moving)
        if not forces:
            return Prediction(energy, atom_energies)
        (gradient,) = torch.autograd.grad(self.conserved(energy, atom_energies), positions)
        return Prediction(energy.detach(), atom_energies.detach(), self.forces(-gradient, moving))

    def envelope(self, r: Tensor) -> Tensor:
        x = r / self.cutoff
        return 1 - 28 * x**6 + 48 * x**7 - 21 * x**8

    def pair_energies(self, batch: Batch, r: Tensor) -> Tensor:
        center, neighbor = batch.numbers[batch.edge_index].to(r.dtype)
        decay = torch.exp(-(r - 2.2))
        return self.depth * (1 + 0.01 * center * neighbor) * (decay**2 - 2 * decay) * self.envelope(r)

    def atom_energies(self, batch: Batch) -> Tensor:
        pair_energies = self.pair_energies(batch, batch.edge_vec().norm(dim=-1))
        return 0.5 * self.sum_pairs(pair_energies, batch)

    def sum_pairs(self, values: Tensor, batch: Batch) -> Tensor:
        zeros = values.new_zeros(len(batch.positions), *values.shape[1:])
        return zeros.index_add(0, batch.edge_index[0], values)

    def system_energies(self, atom_energies: Tensor, batch: Batch) -> Tensor:
        return atom_energies.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atom_energies)

    def conserved(self, energy: Tensor, atom_energies: Tensor) -> Tensor:
        return energy.sum()

    def forces(self, forces: Float[Tensor, "n_atoms 3"], batch: Batch) -> Float[Tensor, "n_atoms 3"]:
        return forces.detach()


class FlippedForces(Pair):
    """+dE/dr, as an earlier Allegro port returned."""

    def forces(self, forces: Tensor, batch: Batch) -> Tensor:
        return -forces.detach()


class ScaledForces(Pair):
    """A factor of 1 + 1e-4, as from a constant in the wrong precision."""

    def forces(self, forces: Tensor, batch: Batch) -> Tensor:
        return forces.detach() * 1.0001


class DirectForces(Pair):
    """Equivariant, but no derivative of anything."""

    def forces(self, forces: Tensor, batch: Batch) -> Tensor:
        vec = batch.edge_vec().detach()
        u = self.envelope(vec.norm(dim=-1))
        density = self.sum_pairs(u, batch)
        return forces.detach() + 0.01 * density[:, None] * self.sum_pairs(u[:, None] * vec, batch)


class HardCutoff(Pair):
    def envelope(self, r: Tensor) -> Tensor:
        return torch.ones_like(r)


class KinkedCutoff(Pair):
    """A continuous energy whose forces jump."""

    def envelope(self, r: Tensor) -> Tensor:
        return 1 - r / self.cutoff


class AbsolutePositions(Pair):
    def atom_energies(self, batch: Batch) -> Tensor:
        return super().atom_energies(batch) + 0.01 * torch.sin(batch.positions[:, 0])


class PreferredDirection(Pair):
    """Knows z from −z and from x, but not where the origin is."""

    def pair_energies(self, batch: Batch, r: Tensor) -> Tensor:
        return super().pair_energies(batch, r) * (1 + 0.01 * (batch.edge_vec()[:, 2] / r) ** 2)


class Chiral(Pair):
    """Adds the triple product of three local vectors: turns with the system, changes sign in a mirror."""

    def atom_energies(self, batch: Batch) -> Tensor:
        vec = batch.edge_vec()
        r = vec.norm(dim=-1, keepdim=True)
        moments = [self.sum_pairs(self.envelope(r) * r**k * vec, batch) for k in range(3)]
        return super().atom_energies(batch) + 1e-4 * torch.linalg.det(torch.stack(moments, dim=-1))


class MeanOverBatch(Pair):
    def system_energies(self, atom_energies: Tensor, batch: Batch) -> Tensor:
        energy = super().system_energies(atom_energies, batch)
        return energy + 0.1 * energy.mean()


class LeakyGradient(Pair):
    """Right numbers; a gradient that crosses systems."""

    def system_energies(self, atom_energies: Tensor, batch: Batch) -> Tensor:
        energy = super().system_energies(atom_energies, batch)
        return energy + 1e-9 * (energy.sum() - energy.sum().detach())

    def conserved(self, energy: Tensor, atom_energies: Tensor) -> Tensor:
        return atom_energies.sum()


class MeanOverAtoms(Pair):
    """CGCNN's pooling: not extensive."""

    def system_energies(self, atom_energies: Tensor, batch: Batch) -> Tensor:
        return super().system_energies(atom_energies, batch) / batch.n_atoms


class MessagePassing(Pair):
    """The density at j, which depends on the neighbours of j, enters the energy of i."""

    def pair_energies(self, batch: Batch, r: Tensor) -> Tensor:
        density = self.sum_pairs(self.envelope(r), batch)
        return super().pair_energies(batch, r) * (1 + 0.01 * density[batch.edge_index[1]])


class OrderOfAtoms(Pair):
    """The first atom of a pair gets more of its energy."""

    def pair_energies(self, batch: Batch, r: Tensor) -> Tensor:
        center, neighbor = batch.edge_index
        return super().pair_energies(batch, r) * (1 + 0.01 * torch.sign(neighbor - center))


class NoSelfImages(Pair):
    """Ignores an atom's own periodic images."""

    def pair_energies(self, batch: Batch, r: Tensor) -> Tensor:
        center, neighbor = batch.edge_index
        return super().pair_energies(batch, r) * (center != neighbor)


class DividesByDensity(Pair):
    """0/0 for an atom without neighbours."""

    def atom_energies(self, batch: Batch) -> Tensor:
        density = self.sum_pairs(self.envelope(batch.edge_vec().norm(dim=-1)), batch)
        return super().atom_energies(batch) * density**2 / density**2


BROKEN: dict[type[Pair], set[str]] = {
    FlippedForces: {"finite_difference_forces"},
    ScaledForces: {"finite_difference_forces"},
    DirectForces: {"finite_difference_forces", "net_force_zero"},
    HardCutoff: {"smooth_cutoff"},
    KinkedCutoff: {"smooth_cutoff"},
    AbsolutePositions: {
        "translation",
        "rotation",
        "reflection",
        "net_force_zero",
        "additivity",
        "supercell",
        "isolated_atom",
    },
    PreferredDirection: {"rotation", "reflection"},
    Chiral: {"reflection"},
    MeanOverBatch: {"batch_independence", "cross_system_gradient", "finite_difference_forces"},
    LeakyGradient: {"cross_system_gradient"},
    MeanOverAtoms: {"additivity", "supercell"},
    MessagePassing: {"strict_locality"},
    OrderOfAtoms: {"permutation", "supercell"},
    NoSelfImages: {"supercell"},
    DividesByDensity: {"isolated_atom", "smooth_cutoff"},
}


def failures(potential: Pair) -> set[str]:
    failed = set()
    for name in CHECKS:
        try:
            getattr(testing, name)(potential)
        except AssertionError:
            failed.add(name.removeprefix("check_"))
    return failed


@pytest.mark.parametrize("training", [True, False])
def test_a_sound_potential_passes(training: bool) -> None:
    potential = Pair().train(training)
    testing.check_all(potential)
    assert potential.depth.dtype == torch.float32, "checks work on a copy"
    assert potential.training is training


@pytest.mark.parametrize("broken", BROKEN, ids=lambda c: c.__name__)
def test_a_broken_potential_fails_where_it_is_broken(broken: type[Pair]) -> None:
    assert failures(broken()) == BROKEN[broken]


def test_every_check_can_fail() -> None:
    assert {f"check_{name}" for names in BROKEN.values() for name in names} == set(CHECKS)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda c: c.__name__)
def test_check_all_finds_it(broken: type[Pair]) -> None:
    with pytest.raises(AssertionError):
        testing.check_all(broken())


def test_strict_locality_is_the_callers_choice() -> None:
    testing.check_all(MessagePassing(), strictly_local=False)


def test_the_message_says_what_where_and_how_much() -> None:
    with pytest.raises(AssertionError, match=r"^inversion, cluster: the energy is off by \S+ eV; allowed \S+ eV$"):
        testing.check_reflection(Chiral())
    slab = testing.example_structures(Pair.elements)[1]
    with pytest.raises(AssertionError, match=r"^finite-difference forces, slab: the force on atom 0.* eV/Å; allowed"):
        testing.check_finite_difference_forces(FlippedForces(), [slab])


def test_nan_fails() -> None:
    class Nan(Pair):
        def forces(self, forces: Tensor, batch: Batch) -> Tensor:
            return forces.detach() * torch.nan

    for name in ("rotation", "net_force_zero", "finite_difference_forces", "smooth_cutoff", "isolated_atom"):
        with pytest.raises(AssertionError):
            getattr(testing, f"check_{name}")(Nan())


def test_example_structures_are_what_they_promise() -> None:
    cluster, slab, bulk = testing.example_structures(Pair.elements)
    assert [s.pbc.tolist() for s in (cluster, slab, bulk)] == [[False] * 3, [True, True, False], [True] * 3]
    assert slab.fixed is not None
    assert slab.tags is not None
    assert 0 < slab.fixed.sum() < len(slab)
    assert set(slab.tags.tolist()) == {0, 1, 2}
    assert np.linalg.norm(bulk.cell, axis=1).max() < Pair.cutoff
    for s in (cluster, slab, bulk):
        batch = Batch.from_structures([s], Pair.cutoff)
        assert batch.edge_vec().norm(dim=-1).min() > 1.2
        assert set(s.numbers.tolist()) <= set(Pair.elements)


def test_random_rotation_is_proper() -> None:
    for seed in range(5):
        matrix = testing.random_rotation(seed)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-14)
        assert np.linalg.det(matrix) > 0


def test_equivariance_of_layers() -> None:
    mixing = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    testing.check_equivariance(lambda x: x @ mixing, "0e + 1o + 2e", "0e + 1o + 2e")
    testing.check_equivariance(lambda a, b: torch.cross(a, b, dim=1), ["1o", "1o"], "1e")
    testing.check_equivariance(lambda a, b: (a * b).sum(1, keepdim=True), ["1o", o3.Irreps("1e")], "0o")


def test_broken_layers_are_found() -> None:
    with pytest.raises(AssertionError, match=r"^rotation, 1x1o -> 1x1o"):
        testing.check_equivariance(torch.relu, "1o", "1o")
    with pytest.raises(AssertionError, match=r"^inversion, 1x1o, 1x1o -> 1x1o"):
        testing.check_equivariance(lambda a, b: torch.cross(a, b, dim=1), ["1o", "1o"], "1o")
    with pytest.raises(AssertionError, match=r"^rotation"):
        testing.check_equivariance(lambda x: x.transpose(1, 2), "1o", "1o")  # channels where components belong
    with pytest.raises(AssertionError, match=r"^rotation"):
        testing.check_equivariance(lambda x: x * torch.nan, "1o", "1o")
