"""Bands that move: step for step as ASE's NEB with FIRE, each on its own, the same beside others and after a break."""

import dataclasses

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from ase.mep import NEB
from ase.optimize import FIRE
from diffusion import RUN, adatoms, known_to_the_run, on_slab

import equicat
from equicat.barriers import driver as driver_module
from equicat.barriers.config import NEBConfig
from equicat.barriers.driver import Band, Driver, Progress
from equicat.barriers.ends import ends_of
from equicat.barriers.interpolation import straight
from equicat.data.structure import Structure
from equicat.relaxation.models import CalculatorForces, PotentialForces
from equicat.relaxation.relax import relax


def emt_band(number: int, initial, final, n_images: int) -> Band:
    """Straight lines between relaxed ends."""
    pair = ends_of(Structure.from_ase(initial), Structure.from_ase(final), None)
    ends = relax([pair.initial, pair.final], CalculatorForces(EMT), progress=False).structures
    return Band(number, *ends, straight(*ends, n_images))


def by_ase(band: Band, climb: bool) -> tuple[NEB, FIRE]:
    images = [s.to_ase() for s in (band.initial, *(band.initial for _ in band.inner), band.final)]
    for image, positions in zip(images[1:-1], band.inner, strict=True):
        image.positions = positions
    for image in images:
        image.calc = EMT()
    neb = NEB(images, k=0.1, climb=climb, method="improvedtangent")
    return neb, FIRE(neb, logfile=None)


def run(model, config: NEBConfig, *bands: Band) -> dict[int, Progress]:
    return dict(Driver(model, config).run(bands, [Progress.begin(band.inner) for band in bands]))


def model_bands(model: PotentialForces, *shifts: float) -> list[Band]:
    """Bands of CO on platinum, with the ends' energies left at zero: only the inner images ask the model."""
    made = []
    for number, shift in enumerate(shifts):
        initial, final = (dataclasses.replace(s, energy=0.0) for s in known_to_the_run(shift))
        made.append(Band(number, initial, final, straight(initial, final, 3)))
    return made


@pytest.fixture(scope="module")
def potential() -> PotentialForces:
    return PotentialForces(equicat.load(RUN))


def same(a: Progress, b: Progress) -> None:
    for field in dataclasses.fields(Progress):
        if field.name != "seconds":
            assert np.array_equal(getattr(a, field.name), getattr(b, field.name), equal_nan=field.name != "how"), field


@pytest.mark.parametrize("climb", [False, True])
def test_steps_are_those_of_ase(climb):
    bands = [emt_band(0, on_slab("fcc"), on_slab("hcp"), 3), emt_band(1, *adatoms(), 2)]
    config = NEBConfig(climb=climb, climb_below=np.inf, fmax=1e-6, max_steps=12)
    found = run(CalculatorForces(EMT), config, *bands)
    for band in bands:
        neb, fire = by_ase(band, climb)
        fire.run(fmax=1e-6, steps=12)
        expected = [image.positions for image in neb.images[1:-1]]
        np.testing.assert_allclose(found[band.number].path, expected, rtol=0, atol=1e-8)
        np.testing.assert_allclose(found[band.number].energies, neb.energies[1:-1], rtol=0, atol=1e-8)
        assert found[band.number].fmax == pytest.approx(np.linalg.norm(neb.get_forces(), axis=1).max(), abs=1e-7)
        assert found[band.number].how == "stopped"


def test_bands_converge_each_on_its_own_at_the_step_of_ase():
    bands = [emt_band(0, on_slab("fcc"), on_slab("hcp"), 3), emt_band(1, *adatoms(), 3)]
    found = run(CalculatorForces(EMT), NEBConfig(climb_below=np.inf), *bands)
    for band in bands:
        neb, fire = by_ase(band, climb=True)
        assert fire.run(fmax=0.05, steps=500)
        assert found[band.number].how == "converged"
        assert found[band.number].n_steps == fire.nsteps
        assert found[band.number].energies.max() == pytest.approx(neb.emax, abs=1e-6)
    assert found[0].n_steps != found[1].n_steps


def test_the_climbing_image_ends_where_the_force_is_zero():
    band = emt_band(0, on_slab("fcc"), on_slab("hcp"), 4)
    for climb_below in (0.1, np.inf):
        found = run(CalculatorForces(EMT), NEBConfig(climb_below=climb_below, fmax=0.01), band)[0]
        top = found.energies.argmax()
        assert found.climbing
        # Along the path the force is turned round, which leaves its length over all atoms.
        assert np.linalg.norm(found.forces[top][~band.initial.fixed]) < 0.01 * np.sqrt(5)


def test_it_climbs_only_when_forces_are_small_and_is_not_done_before():
    band = emt_band(0, on_slab("fcc"), on_slab("hcp"), 4)
    early = run(CalculatorForces(EMT), NEBConfig(climb_below=1e-6, max_steps=1, fmax=1e-6), band)[0]
    assert not early.climbing
    done = run(CalculatorForces(EMT), NEBConfig(climb_below=1e-6), band)[0]
    assert done.climbing, "fmax is the limit where climb_below is smaller"
    assert done.how == "converged"
    assert not run(CalculatorForces(EMT), NEBConfig(climb=False), band)[0].climbing


def test_fixed_atoms_keep_every_bit():
    band = emt_band(0, on_slab("fcc"), on_slab("hcp"), 3)
    found = run(CalculatorForces(EMT), NEBConfig(max_steps=5), band)[0]
    fixed = band.initial.fixed
    assert all(np.array_equal(image[fixed], band.initial.positions[fixed]) for image in found.path)


def test_bands_keep_every_bit_beside_others_and_in_batches_of_any_size(potential):
    config = NEBConfig(max_steps=6, fmax=1e-4)
    bands = model_bands(potential, 0.0, 0.15, -0.1)
    together = run(potential, config, *bands)
    for band in bands:
        same(together[band.number], run(potential, config, band)[band.number])
    for number, found in run(potential, dataclasses.replace(config, edges=1), *bands).items():
        same(together[number], found)
    for number, found in run(potential, dataclasses.replace(config, skin=0.01), *bands).items():
        np.testing.assert_allclose(found.path, together[number].path, rtol=0, atol=1e-5)


def test_not_a_number_in_one_band_ends_it_and_leaves_the_others_every_bit(potential):
    class Broken:
        """NaN for one image of band 1 from the third call on."""

        def __init__(self):
            self.calls = 0
            for name in ("cutoff", "elements", "energy_reference", "device", "edges"):
                setattr(self, name, getattr(potential, name))

        def __call__(self, batch):
            energy, forces = potential(batch)
            self.calls += 1
            mine = torch.tensor([name == "1-2" and self.calls > 2 for name in batch.ids])
            return energy, torch.where(mine[batch.system_idx][:, None], torch.nan, forces)

    config = NEBConfig(max_steps=6, fmax=1e-4)
    bands = model_bands(potential, 0.0, 0.15, -0.1)
    fine, broken = run(potential, config, *bands), run(Broken(), config, *bands)
    assert broken[1].how == "exploded"
    assert broken[1].n_steps == 2
    assert np.isfinite(broken[1].path).all()
    assert np.isfinite(broken[1].energies).all()
    same(fine[0], broken[0])
    same(fine[2], broken[2])


def test_progress_that_was_saved_goes_on_to_the_same_bits(potential, monkeypatch):
    monkeypatch.setattr(driver_module, "SAVE_SECONDS", 0.0)
    config = NEBConfig(max_steps=9, fmax=1e-4)
    bands = model_bands(potential, 0.0, 0.15)
    saved = []
    ended = dict(
        Driver(potential, config, lambda p: saved.append(dict(p))).run(bands, [Progress.begin(b.inner) for b in bands])
    )
    for middle in (saved[0], saved[4], saved[-1]):
        again = dict(Driver(potential, config).run(bands, [middle[band.number] for band in bands]))
        for number, found in again.items():
            same(found, ended[number])
