"""First paths: ASE's IDPP is the oracle; atoms cross boundaries and keep out of each other's way."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.mep.neb import IDPP, NEB, idpp_interpolate
from diffusion import adatoms, on_slab

from equicat.barriers.ends import ends_of
from equicat.barriers.interpolation import PairPotential, collision, idpp, straight
from equicat.data.structure import Structure


def ends(initial: Atoms, final: Atoms) -> tuple[Structure, Structure]:
    pair = ends_of(Structure.from_ase(initial, source="initial"), Structure.from_ase(final, source="final"), None)
    return pair.initial, pair.final


def test_straight_lines_are_those_of_ase_across_a_boundary_of_the_cell():
    images = [adatoms()[0] for _ in range(5)] + [adatoms()[1]]
    NEB(images, method="improvedtangent").interpolate(mic=True)
    found = straight(*ends(*adatoms()), 4)
    np.testing.assert_allclose(found, [image.positions for image in images[1:-1]], rtol=0, atol=1e-12)
    assert np.linalg.norm(np.diff(found, axis=0), axis=2).max() < 0.6


def test_what_is_fixed_keeps_every_bit():
    initial, final = ends(on_slab("fcc"), on_slab("hcp"))
    for path in (straight(initial, final, 3), idpp(initial, final, 3)):
        assert all(np.array_equal(image[initial.fixed], initial.positions[initial.fixed]) for image in path)


@pytest.mark.parametrize("pair", [(on_slab("fcc"), on_slab("hcp")), adatoms()], ids=["O", "Cu"])
def test_the_pair_potential_is_that_of_ase(pair):
    initial, final = ends(*pair)
    # Displaced, so that no two images of an atom are equally near.
    inner = straight(initial, final, 3) + np.random.default_rng(0).normal(scale=0.05, size=(3, len(initial), 3))
    energies, forces = PairPotential.of(initial, final, inner)(torch.from_numpy(inner))
    first, last = (atoms.get_all_distances(mic=True) for atoms in (initial.to_ase(), final.to_ase()))
    for image, (positions, energy, force) in enumerate(zip(inner, energies, forces, strict=True), start=1):
        atoms = initial.to_ase()
        atoms.set_constraint()
        atoms.positions, atoms.calc = positions, IDPP(first + image / 4 * (last - first), mic=True)
        assert float(energy) == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(force.numpy(), atoms.get_forces(), rtol=0, atol=1e-10)


def test_the_path_is_near_that_of_ase():
    initial, final = ends(on_slab("fcc"), on_slab("bridge"))
    images = [initial.to_ase() for _ in range(4)] + [final.to_ase()]
    neb = NEB(images, method="improvedtangent")
    neb.interpolate(mic=True)
    idpp_interpolate(neb, traj=None, log=None, mic=True, fmax=0.01, steps=300)
    found = idpp(initial, final, 3)
    np.testing.assert_allclose(found, [image.positions for image in images[1:-1]], rtol=0, atol=0.1)


def test_atoms_that_meet_on_straight_lines_pass_each_other():
    """O and N change places above a surface: on straight lines they would meet in the middle."""
    initial = on_slab("fcc")
    initial += Atoms("N", [initial.positions[-1] + [0.0, 2.0, 0.0]], tags=[2])
    final = initial.copy()
    final.positions[[-2, -1]] = initial.positions[[-1, -2]]
    a, b = ends(initial, final)
    met = collision(a, straight(a, b, 3))
    assert met == "in image 2 atoms 8 (O) and 9 (N) are 0.00 Å apart"
    path = idpp(a, b, 3)
    assert collision(a, path) == ""
    assert np.isfinite(path).all()
    assert np.array_equal(path, idpp(a, b, 3)), "the same at every call"
