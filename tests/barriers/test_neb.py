"""`equicat neb`: from files to a directory, with a model and with EMT; what cannot be done is one line."""

import csv
import dataclasses
import json
import warnings

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.mep import NEB
from ase.optimize import FIRE
from ase.vibrations import Vibrations
from diffusion import RUN, adatoms, known_to_the_run, on_slab

import equicat
from equicat.barriers import driver as driver_module
from equicat.barriers.config import NEBConfig
from equicat.barriers.figure import curve
from equicat.data.fitted import Domain, pair_name
from equicat.data.readers import read, write
from equicat.errors import InputError, OutsideTraining
from equicat.relaxation.models import CalculatorForces, PotentialForces

EMT_FORCES = CalculatorForces(EMT)


def find(initial, final, model=EMT_FORCES, **options):
    how = {name: options.pop(name) for name in ("out", "existing") if name in options}
    return equicat.neb(initial, final, model, NEBConfig(**options), progress=False, **how)


@pytest.fixture(scope="module")
def oxygen():
    """O from fcc to hcp on Pd(111)."""
    return find(on_slab("fcc"), on_slab("hcp"), images=5, fmax=0.02).bands[0]


def test_the_barrier_is_that_of_ase(oxygen):
    images = [image.to_ase() for image in oxygen.path]
    start = [images[0].copy() for _ in range(6)] + [images[-1].copy()]
    neb = NEB(start, k=0.1, climb=True, method="improvedtangent")
    neb.interpolate(method="idpp", mic=True)
    for image in start:
        image.calc = EMT()
    assert FIRE(neb, logfile=None).run(fmax=0.02, steps=300)
    energies = np.array([image.get_potential_energy() for image in start])
    assert oxygen.converged
    assert oxygen.flags == ()
    assert oxygen.forward == pytest.approx(energies.max() - energies[0], abs=0.001)
    assert oxygen.reverse == pytest.approx(energies.max() - energies[-1], abs=0.001)
    assert oxygen.reaction_energy == pytest.approx(energies[-1] - energies[0], abs=1e-6)


def test_the_highest_image_has_the_frequencies_of_ase(oxygen, tmp_path):
    atoms = oxygen.path[oxygen.saddle].to_ase()
    atoms.calc = EMT()
    vibrations = Vibrations(atoms, indices=[8], name=str(tmp_path / "vib"), delta=0.01)
    vibrations.run()
    expected = vibrations.get_frequencies()
    assert oxygen.n_imaginary == 1
    assert oxygen.frequencies == pytest.approx(np.where(expected.imag > 0, -expected.imag, expected.real), abs=0.1)


def test_ends_were_relaxed_and_it_is_said(oxygen):
    assert oxygen.notes[0].startswith("The initial structure was relaxed in ")
    assert all(end.info["converged"] for end in (oxygen.path[0], oxygen.path[-1]))


def test_the_curve_goes_through_the_images_with_the_slope_of_the_forces(oxygen):
    fit = curve(oxygen)
    assert fit.fit_energies[::20] == pytest.approx(oxygen.energies - oxygen.energies[0])
    assert fit.fit_path[::20] == pytest.approx(oxygen.lengths)
    # The curve finds the top between images, where there is none.
    assert oxygen.forward - 1e-12 <= fit.fit_energies.max() < oxygen.forward + 0.01


def test_ends_as_they_are(tmp_path):
    band = find(on_slab("fcc"), on_slab("hcp"), images=3, relax_ends=False, max_steps=3).bands[0]
    assert "end_not_minimum" in band.flags
    assert np.array_equal(band.path[0].positions, on_slab("fcc").positions)
    assert band.notes[0].startswith("The initial structure was taken as it is (largest force ")
    assert "so it is no minimum" in band.notes[0]
    assert not band.converged


def test_an_adatom_that_is_wrapped_goes_over_the_bridge():
    band = find(*adatoms(), images=5, check_saddle=False).bands[0]
    assert band.forward == pytest.approx(band.reverse, abs=0.01)
    assert 0.2 < band.forward < 0.8
    assert np.diff(band.lengths).max() < 1.0
    assert band.path[-1].positions[-1, 0] - band.path[0].positions[-1, 0] == pytest.approx(2.55, abs=0.1)


def test_frames_are_bands_in_one_batch(oxygen):
    bands = find(
        [on_slab("fcc", "Cu"), on_slab("fcc")], [on_slab("hcp", "Cu"), on_slab("hcp")], images=5, fmax=0.02
    ).bands
    assert [band.number for band in bands] == [0, 1]
    assert bands[1].n_steps == oxygen.n_steps
    np.testing.assert_allclose(bands[1].energies, oxygen.energies, rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="2 initial and 1 final structures"):
        find([on_slab("fcc"), on_slab("fcc")], on_slab("hcp"))


def test_a_path_of_ones_own(oxygen):
    images = [image.to_ase() for image in oxygen.path]
    found = find(images, None, fmax=0.02).bands[0]
    assert len(found.path) == 7
    assert found.n_steps <= 1
    assert found.forward == pytest.approx(oxygen.forward, abs=1e-6)


def test_a_path_through_another_minimum_is_flagged():
    """From one hollow of Cu(100) two hollows on, past the one between."""
    initial = adatoms()[0] * (2, 1, 1)
    del initial[25]
    final = initial.copy()
    final.positions[12] += initial.cell[0] / 3
    band = find(initial, final, images=7, max_steps=60, check_saddle=False).bands[0]
    assert "intermediate_minimum" in band.flags


def test_both_ends_in_one_minimum():
    away = on_slab("fcc")
    away.positions[-1] += [0.3, 0.0, 0.1]
    with pytest.raises(InputError, match="there is no path: both ends relaxed to the same minimum"):
        find(on_slab("fcc"), away, images=3)
    bands = find([on_slab("fcc"), on_slab("fcc")], [away, on_slab("hcp")], images=3).bands
    assert bands[0].flags == ("same_minimum",)
    assert bands[0].forward is None
    assert bands[1].converged


def test_atoms_that_collide_on_the_first_path():
    initial = on_slab("fcc")
    initial += Atoms("O", [initial.positions[-1] + [0.0, 2.0, 0.0]], tags=[2])
    final = initial.copy()
    final.positions[[-2, -1]] = initial.positions[[-1, -2]]
    with pytest.raises(InputError, match=r"no path: in image 2 atoms 8 \(O\) and 9 \(O\) are 0.0. Å apart .* idpp"):
        find(initial, final, images=3, interpolation="linear", reorder=False, relax_ends=False)


def test_a_model_that_gives_the_ends_no_numbers():
    class Broken(CalculatorForces):
        def __call__(self, batch):
            energy, forces = super().__call__(batch)
            return torch.full_like(energy, torch.nan), forces

    with pytest.raises(InputError, match="the model gives the initial structure no finite energy"):
        find(on_slab("fcc"), on_slab("hcp"), Broken(EMT), images=3)


def test_structures_that_cannot_be_moved_or_are_not_known():
    fixed = on_slab("fcc"), on_slab("hcp")
    for atoms in fixed:
        atoms.set_constraint(FixAtoms(range(9)))
    with pytest.raises(InputError, match="every atom is fixed"):
        find(*fixed)
    with pytest.raises(InputError, match="initial structure 0: element Ni was not in the training data"):
        find(on_slab("fcc", "Ni"), on_slab("hcp", "Ni"), RUN)


def test_a_model_without_forces():
    direct = RUN.parent / "is2re_displacements"
    with pytest.raises(InputError, match="gives no forces; use a model trained for s2ef"):
        find(on_slab("fcc"), on_slab("hcp"), direct)


# ---- the directory ---------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Two bands that the stored run knows."""
    bands = [known_to_the_run(shift) for shift in (0.0, 0.15)]
    for k, name in enumerate(("initial", "final")):
        named = [dataclasses.replace(band[k], sid=f"b{n}") for n, band in enumerate(bands)]
        write(tmp_path / f"{name}.extxyz", named)
    return tmp_path / "initial.extxyz", tmp_path / "final.extxyz"


SHORT = {"images": 3, "max_steps": 8, "relax_ends": False}


def test_everything_is_in_the_directory(tmp_path, files):
    result = find(*files, RUN, out=tmp_path / "out", **SHORT)
    summary = json.loads((tmp_path / "out" / "barrier.json").read_text())
    assert [band["name"] for band in summary["bands"]] == ["b0", "b1"]
    for band, said in zip(result.bands, summary["bands"], strict=True):
        assert said["forward_barrier_eV"] == pytest.approx(band.forward)
        assert said["saddle_image"] == band.saddle
    frames = list(read(tmp_path / "out" / "path.extxyz"))
    assert len(frames) == 10
    model = equicat.load(RUN)
    for frame in frames:
        with torch.no_grad():
            bare = dataclasses.replace(frame, energy=None, forces=None)
            found = model(equicat.Batch.from_structures([bare], model.cutoff, dtype=model.dtype))
        assert frame.energy == pytest.approx(float(found.energy), abs=1e-4)
        assert frame.info["energy_reference"] == model.info.energy_reference
    assert [frame.info["image"] for frame in frames] == [0, 1, 2, 3, 4] * 2
    with (tmp_path / "out" / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[4]["path_length_A"]) == pytest.approx(frames[4].info["reaction_coordinate"], abs=1e-6)
    assert float(rows[4]["relative_energy_eV"]) == pytest.approx(result.bands[0].reaction_energy, abs=1e-6)
    assert (tmp_path / "out" / "profile.svg").read_text().count("<svg") == 1
    assert len(ase.io.read(tmp_path / "out" / "path.extxyz", ":")) == 10


def test_a_directory_is_not_lost_and_belongs_to_its_options(tmp_path, files):
    out = tmp_path / "out"
    find(*files, RUN, out=out, **SHORT)
    with pytest.raises(InputError, match="exists already; --resume goes on with it, --overwrite begins anew"):
        find(*files, RUN, out=out, **SHORT)
    with pytest.raises(InputError, match="was begun with other k; give the same to resume it"):
        find(*files, RUN, out=out, existing="resume", k=1.0, **SHORT)
    find(*files, RUN, out=out, existing="overwrite", k=1.0, **SHORT)
    with pytest.raises(InputError, match="holds other files"):
        find(*files, RUN, out=tmp_path, **SHORT)
    with pytest.raises(InputError, match="is a file"):
        find(*files, RUN, out=files[0], **SHORT)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, files, monkeypatch):
    monkeypatch.setattr(driver_module, "SAVE_SECONDS", 0.0)
    whole = find(*files, RUN, out=tmp_path / "whole", **SHORT)

    class Killed(PotentialForces):
        calls = 0

        def __call__(self, batch):
            self.calls += 1
            if self.calls == 6:
                raise KeyboardInterrupt
            return super().__call__(batch)

    killed = Killed(equicat.load(RUN))
    monkeypatch.setattr(
        "equicat.barriers.neb.force_model", lambda model, device: killed if model == "killed" else model
    )
    with pytest.raises(KeyboardInterrupt):
        find(*files, "killed", out=tmp_path / "parts", **SHORT)
    assert (tmp_path / "parts" / "progress.npz").exists()
    assert not (tmp_path / "parts" / "barrier.json").exists()
    again = find(*files, PotentialForces(equicat.load(RUN)), out=tmp_path / "parts", existing="resume", **SHORT)
    for one, other in zip(whole.bands, again.bands, strict=True):
        assert np.array_equal(one.energies, other.energies)
        assert all(np.array_equal(a.positions, b.positions) for a, b in zip(one.path, other.path, strict=True))
    for name in ("path.extxyz", "profile.csv", "profile.svg"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_damaged_progress_is_one_line(tmp_path, files):
    find(*files, RUN, out=tmp_path / "out", **SHORT)
    (tmp_path / "out" / "progress.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputError, match=r"progress.npz: damaged .*; remove it to begin the bands anew"):
        find(*files, RUN, out=tmp_path / "out", existing="resume", **SHORT)


def test_a_path_out_of_the_training_data_is_said(files):
    """The ends are as in training; on the way the molecule comes closer to the surface than any there."""
    potential = equicat.load(RUN)
    initial, final = known_to_the_run()
    low = initial.positions + (final.positions - initial.positions) / 2
    low[initial.tags == 2] -= [0.0, 0.0, 0.8]
    path = [initial, dataclasses.replace(initial, positions=low), final]
    batches = [equicat.Batch.from_structures([end], potential.cutoff) for end in (initial, final)]
    shortest = {}
    for batch in batches:
        distances = batch.edge_vec().norm(dim=1)
        for (i, j), d in zip(batch.edge_index.T.tolist(), distances.tolist(), strict=True):
            name = pair_name(*sorted((int(batch.numbers[i]), int(batch.numbers[j]))))
            shortest[name] = min(d, shortest.get(name, d))
    elements = tuple(sorted(set(initial.numbers.tolist())))
    domain = Domain(2, 2, len(initial), shortest, {}, {}, {}, (), elements)
    potential.info = dataclasses.replace(potential.info, domain=domain)
    with pytest.warns(OutsideTraining, match="shortest in training"):
        find(path, None, potential, max_steps=0, relax_ends=False, check_saddle=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideTraining)
        find(path[:1], path[2:], potential, max_steps=0, relax_ends=False, check_saddle=False, interpolation="linear")
