"""Nudged forces: ASE's NEB is the oracle, and bands do not feel each other."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.mep import NEB
from diffusion import adatoms, on_slab

from equicat.barriers.chain import Chain, nudged_forces, tangents


def crooked_band(initial: Atoms, final: Atoms, n_images: int, seed: int) -> list[Atoms]:
    """Images between two ends, each free atom displaced at random, with EMT."""
    rng = np.random.default_rng(seed)
    images = [initial.copy() for _ in range(n_images + 1)] + [final.copy()]
    NEB(images, method="improvedtangent").interpolate(mic=True)
    for image in images[1:-1]:
        free = image.get_tags() > 0
        image.positions[free] += rng.normal(scale=0.1, size=(free.sum(), 3))
    for image in images:
        image.calc = EMT()
    # ASE wraps nothing, but looks for nearest images itself; ours are told where atoms go.
    images[-1].positions = images[-2].positions + _nearest(images[-1].positions - images[-2].positions, initial)
    return images


def _nearest(way, atoms):
    from ase.geometry import find_mic

    return find_mic(way, atoms.cell, atoms.pbc)[0]


def flat(bands: list[list[Atoms]]) -> tuple:
    """The arguments of our function, from images of ASE."""
    inner = [image for band in bands for image in band[1:-1]]
    ends = [image for band in bands for image in (band[0], band[-1])]
    positions = torch.from_numpy(np.concatenate([image.positions for image in inner + ends]))
    energies = torch.tensor([image.get_potential_energy() for image in inner + ends], dtype=torch.float64)
    forces = torch.from_numpy(np.concatenate([image.get_forces() for image in inner]))
    return Chain.of([len(b) - 2 for b in bands], [len(b[0]) for b in bands]), positions, energies, forces


@pytest.fixture(scope="module")
def bands() -> list[list[Atoms]]:
    return [
        crooked_band(on_slab("fcc"), on_slab("hcp"), 3, 0),
        crooked_band(*adatoms(), 5, 1),
        crooked_band(on_slab("fcc", "Cu", "N"), on_slab("bridge", "Cu", "N"), 1, 2),
    ]


@pytest.mark.parametrize("climb", [False, True])
@pytest.mark.parametrize("k", [0.1, 3.0])
def test_forces_on_every_image_are_those_of_ase(bands, climb, k):
    chain, positions, energies, forces = flat(bands)
    climbing = torch.full((len(bands),), climb)
    ours = nudged_forces(chain, positions, energies, forces, k, climbing).numpy()
    theirs = [NEB(band, k=k, climb=climb, method="improvedtangent").get_forces() for band in bands]
    np.testing.assert_allclose(ours, np.concatenate(theirs), rtol=0, atol=1e-10)


def test_only_bands_that_climb_do(bands):
    chain, positions, energies, forces = flat(bands)
    ours = nudged_forces(chain, positions, energies, forces, 0.1, torch.tensor([False, True, False])).numpy()
    theirs = [
        NEB(band, k=0.1, climb=climb, method="improvedtangent").get_forces()
        for band, climb in zip(bands, (False, True, False), strict=True)
    ]
    np.testing.assert_allclose(ours, np.concatenate(theirs), rtol=0, atol=1e-10)


def test_every_shape_of_profile_has_the_tangents_of_ase():
    """Rising, falling, a maximum, a minimum and equal energies, with energies that are just made up."""
    rng = np.random.default_rng(0)
    for energies in ([0, 1, 2, 3, 4.0], [4, 3, 2, 1, 0.0], [0, 2, 1, 3, 0.5], [1, 0, 2, 0, 1.0], [0, 1, 1, 1, 0.0]):
        positions = rng.normal(size=(5, 2, 3))
        band = [Atoms("H2", r) for r in positions]
        found, stretch = tangents(
            Chain.of([3], [2]),
            torch.from_numpy(np.concatenate([*positions[1:-1], positions[0], positions[-1]])),
            torch.tensor([*energies[1:-1], energies[0], energies[-1]], dtype=torch.float64),
        )
        neb = NEB(band, method="improvedtangent")
        from ase.mep.neb import NEBState

        state = NEBState(neb, band, np.array(energies))
        for i in (1, 2, 3):
            expected = neb.neb_method.get_tangent(state, state.spring(i - 1), state.spring(i), i)
            np.testing.assert_allclose(found[2 * i - 2 : 2 * i].numpy(), expected, rtol=0, atol=1e-14)
            assert float(stretch[i - 1]) == pytest.approx(state.spring(i).nt - state.spring(i - 1).nt, abs=1e-14)


def test_a_band_keeps_every_bit_beside_others(bands):
    chain, positions, energies, forces = flat(bands)
    together = nudged_forces(chain, positions, energies, forces, 0.1, torch.tensor([True] * 3))
    first = 0
    for band in bands:
        alone = nudged_forces(*flat([band]), 0.1, torch.tensor([True]))
        assert torch.equal(together[first : first + len(alone)], alone)
        first += len(alone)


def test_not_a_number_in_one_band_is_not_in_another(bands):
    chain, positions, energies, forces = flat(bands)
    fine = nudged_forces(chain, positions, energies, forces, 0.1, torch.tensor([True] * 3))
    energies[1], forces[:3] = torch.nan, torch.nan
    broken = nudged_forces(chain, positions, energies, forces, 0.1, torch.tensor([True] * 3))
    n = 3 * len(bands[0][0])
    assert broken[:n].isnan().any()
    assert torch.equal(broken[n:], fine[n:])


def test_the_first_of_equally_high_images_climbs():
    chain = Chain.of([4, 2], [1, 1])
    energies = torch.tensor([1.0, 3.0, 3.0, 0.0, -2.0, -1.0], dtype=torch.float64)
    assert chain.highest(energies).tolist() == [False, True, False, False, False, True]
