"""The extrapolation grade of atoms: where it is small, where it grows, and how structures are chosen by it."""

import dataclasses

import ase.io
import numpy as np
import pytest
import torch
from conftest import SMALL, labelled

import equicat
from equicat import InputError
from equicat.apply.predict import as_text, predict
from equicat.apply.select import select
from equicat.cli.main import main
from equicat.data.batch import Batch
from equicat.data.readers import read, write
from equicat.models import gradient
from equicat.models.potential import Potential
from equicat.models.uncertainty import Grade, atom_features, graded, most_informative
from equicat.networks.baselines.schnet import SchNetConfig

ELEMENTS = (8, 29)


@pytest.fixture(scope="module", params=["allegro", "schnet"])
def model(request):
    torch.manual_seed(0)
    config = SMALL if request.param == "allegro" else SchNetConfig(cutoff=4.0, hidden_channels=16, n_filters=16)
    return Potential(config, ELEMENTS, (8,)).double().eval().requires_grad_(False)


def batch_of(structures) -> Batch:
    return Batch.from_structures(structures, 4.0, dtype=torch.float64)


def squeezed(seed: int, by: float):
    structure = labelled(seed)
    return dataclasses.replace(structure, positions=structure.positions * by, cell=structure.cell * by)


@pytest.fixture(scope="module")
def grade(model):
    return Grade.fit(model, [batch_of([labelled(seed) for seed in range(40)])], len(ELEMENTS))


def test_almost_all_training_atoms_are_within(model, grade):
    found = grade(model, batch_of([labelled(seed) for seed in range(40)]))
    assert found.dtype == torch.float64
    assert (found >= 0).all()
    assert 0.95 < (found <= 1).double().mean() < 1


def test_it_grows_with_the_distance_from_the_training_data(model, grade):
    means = [float(grade(model, batch_of([squeezed(50, by)])).mean()) for by in (1.0, 0.95, 0.9, 0.85)]
    assert means == sorted(means)
    assert means[0] < 1 < means[-1]


def test_it_does_not_change_when_a_system_is_turned_mirrored_or_moved(model, grade):
    structure, rotation = labelled(3), np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = dataclasses.replace(
        structure, positions=structure.positions @ rotation + 1.7, cell=structure.cell @ rotation
    )
    first, second = grade(model, batch_of([structure])), grade(model, batch_of([turned]))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


def test_an_atom_has_the_same_grade_in_any_batch(model, grade):
    structures = [labelled(seed) for seed in (1, 2)]
    together = grade(model, batch_of(structures))
    apart = torch.cat([grade(model, batch_of([s])) for s in structures])
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


def test_features_do_not_depend_on_how_many_centres_are_worked_on_at_a_time(model, monkeypatch):
    batch = batch_of([labelled(seed) for seed in (1, 2)])
    whole = atom_features(model, batch)
    monkeypatch.setitem(gradient.FLOATS_AT_A_TIME, "cpu", 40 * getattr(model.network, "floats_per_edge", 1))
    torch.testing.assert_close(atom_features(model, batch), whole, rtol=1e-12, atol=1e-12)


def test_it_is_the_mahalanobis_distance_where_there_is_one_centre(model):
    """With one centre and no prior of other elements' spread, which the plain formula does not have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("equicat.models.uncertainty.CENTERS", 1)
        patch.setattr("equicat.models.uncertainty.PRIOR_ATOMS", 0)
        patch.setattr("equicat.models.uncertainty.SMALLEST_SPREAD", 1e-6)
        batch = batch_of([labelled(seed) for seed in range(40)])
        grade = Grade.fit(model, [batch], len(ELEMENTS))
        features, species = atom_features(model, batch), model.species(batch)
        own = features[species == 1]
        k = min(24, own.shape[1])
        centered = own - own.mean(0)
        _, values, axes = torch.linalg.svd(centered, full_matrices=False)
        deviations = (values[:k] / len(own) ** 0.5).clamp(min=1e-6 * float(values[0]) / len(own) ** 0.5)
        distance = ((centered @ axes[:k].T) / deviations).norm(dim=1)
        expected = distance / torch.quantile(distance, 0.99)
        torch.testing.assert_close(grade.of(features, species)[species == 1], expected, rtol=1e-4, atol=1e-4)


def test_an_element_that_was_hardly_seen_has_a_grade(model):
    few = dataclasses.replace(labelled(0), numbers=np.full(len(labelled(0)), 29))
    grade = Grade.fit(model, [batch_of([few])], len(ELEMENTS))
    assert grade(model, batch_of([labelled(0)])).isfinite().all()


def test_a_chosen_structure_makes_its_likes_known(model, grade):
    """Only one of two equal strange structures is worth a calculation."""
    strange = [squeezed(60, 0.85), squeezed(60, 0.85), squeezed(61, 0.88), labelled(1), labelled(2)]
    batches = [batch_of([s]) for s in strange]
    features = [(atom_features(model, b), model.species(b)) for b in batches]
    chosen = most_informative(grade, features, 5)
    places, grades = zip(*chosen, strict=True)
    assert set(places) == set(range(5))
    assert grades[0] > 1
    assert list(grades) == sorted(grades, reverse=True)
    assert {places[0], places[1]} in ({0, 2}, {1, 2})
    assert grades[places.index({0: 1, 1: 0, 2: 0}[places[0]])] == pytest.approx(0, abs=1e-5)


def test_a_file_keeps_it_and_a_damaged_one_is_named(grade, model, tmp_path):
    grade.save(tmp_path / "grade.safetensors")
    batch = batch_of([labelled(0)])
    assert torch.equal(Grade.load(tmp_path / "grade.safetensors")(model, batch), grade(model, batch))
    (tmp_path / "grade.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"grade.safetensors: damaged .* remove it"):
        Grade.load(tmp_path / "grade.safetensors")


# ---- in commands -----------------------------------------------------------------------------------------------------


def test_a_run_has_it_and_predictions_show_it(run, tmp_path):
    assert (run / "grade.safetensors").is_file()
    write(tmp_path / "in.extxyz", [labelled(0), squeezed(1, 0.85)])
    predict(run, tmp_path / "in.extxyz", out=tmp_path / "out.extxyz", progress=False, outside_training="ignore")
    frames = ase.io.read(tmp_path / "out.extxyz", ":")
    assert [frame.info["grade"] for frame in frames] == pytest.approx(
        [f.arrays["grade"].max() for f in frames], abs=1e-4
    )
    assert frames[0].info["grade"] < frames[1].info["grade"]
    shown = as_text(tmp_path / "out.extxyz", 2)
    assert "largest grade" in shown
    assert "A grade above 1: unlike the training data." in shown
    potential = equicat.load(run)
    (known, _) = graded(potential, [labelled(0), squeezed(1, 0.85)])
    np.testing.assert_allclose(known.grades, frames[0].arrays["grade"], rtol=1e-6, atol=1e-6)


def test_relaxed_structures_have_it(run, tmp_path):
    relaxed = equicat.relax([labelled(0)], run, out=tmp_path / "relaxed.extxyz", progress=False)
    (frame,) = ase.io.read(tmp_path / "relaxed.extxyz", ":")
    assert frame.info["grade"] == relaxed.structures[0].info["grade"] > 0
    assert len(frame.arrays["grade"]) == len(frame)


def test_select_writes_structures_without_labels_the_strangest_first(run, tmp_path, capsys):
    write(tmp_path / "pool.extxyz", [labelled(0), labelled(1), squeezed(2, 0.85), labelled(3)])
    assert main(["select", str(run), str(tmp_path / "pool.extxyz"), "--n", "2", "--out", str(tmp_path / "c.xyz")]) == 0
    found = list(read(tmp_path / "c.xyz"))
    assert found[0].sid == "s2"
    assert all(s.energy is None and s.forces is None for s in found)
    assert "2 structures, a grade above 1 is unlike the training data" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "message"), [(9, "asks for 9 structures, there are 1"), (0, "n is 0; it must be")])
def test_select_refuses_in_one_line(run, tmp_path, n, message):
    write(tmp_path / "pool.extxyz", [labelled(0)])
    with pytest.raises(InputError, match=message):
        select(run, (str(tmp_path / "pool.extxyz"),), out=str(tmp_path / "c.xyz"), n=n)


def test_info_says_what_a_run_is(run, capsys):
    assert main(["info", str(run)]) == 0
    said = capsys.readouterr().out
    for words in ("s2ef: energy, forces", "allegro, n_layers 2, l_max 1, cutoff 4.0 Å", "2: O Cu", "adsorption"):
        assert words in said
    assert "12 steps, epoch 3" in said
    assert "force MAE [eV/Å] " in said
    assert "16 systems" in said
    assert "torch " in said


def test_info_of_no_run_is_one_line(tmp_path, capsys):
    assert main(["info", str(tmp_path / "nowhere")]) == 2
    assert "no such run directory" in capsys.readouterr().err
