"""`equicat evaluate --relax`: relaxed energies and structures against the data's, by relaxing."""

import json
import shutil

import numpy as np
import pytest
from ase.calculators.emt import EMT
from emt_slabs import structures
from places import FIXTURES

from equicat.apply import evaluate_relaxations as module
from equicat.apply.evaluate import evaluate
from equicat.apply.evaluate_relaxations import Beside, evaluate_relaxations
from equicat.cli.main import main
from equicat.data.datasets import open_dataset
from equicat.data.info import DatasetInfo
from equicat.data.readers import write
from equicat.data.store import write_store
from equicat.errors import InputError
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.models import CalculatorForces
from equicat.relaxation.relax import relax
from equicat.report.page import write_report

DIRECT = FIXTURES / "runs_b139b12" / "is2re_displacements"
"""A model of relaxed energies and displacements that knows the elements of the shared data."""


def test_every_split_but_the_training_data_is_relaxed_and_compared(run, data, tmp_path, capsys):
    out, folder = tmp_path / "metrics.json", tmp_path / "relaxed"
    options = ["--relax", "--data", str(data), "--relaxation.max_steps", "3", "--progress", "false", "--json", str(out)]
    before = sorted(path.name for path in run.rglob("*"))
    assert main(["evaluate", str(run), *options, "--out", str(folder)]) == 0
    printed, summary = capsys.readouterr().out, json.loads(out.read_text())
    assert sorted(path.name for path in run.rglob("*")) == before
    assert json.loads((folder / "metrics.json").read_text())["splits"] == summary["splits"]
    assert list(summary["splits"]) == ["val_id", "val_ood_ads"]
    split = summary["splits"]["val_id"]
    assert split["n_systems"] == 6
    assert split["relaxations"]["mean_steps"] <= 3
    assert split["relaxations"]["n_converged"] == 0
    assert list(split["rows"]) == [
        "allegro, relaxed",
        "mean energy, no displacement",
        "linear reference, no displacement",
    ]
    assert {"energy_mae", "positions_average_distance_within_threshold"} < set(split["rows"]["allegro, relaxed"])
    assert "average_force_below_threshold" not in split["rows"]["allegro, relaxed"]
    assert split["relaxations"]["classes"] == {"normal": 0, "migrated": 0, "anomaly": 6}
    assert "0 converged" in printed
    assert "0 normal, 0 migrated, 6 anomaly" in printed
    assert "s a system on average" in printed
    assert "Energies: adsorption" in printed
    with np.load(folder / "predictions" / "val_id.npz") as arrays:
        why = arrays["example_why"].tolist()
        assert why[-3:] == ["best", "median", "worst"]
        steps = arrays["example_n_frames"]
        assert steps.tolist() == [0] * (len(why) - 3) + [4, 4, 4]
        n_atoms = arrays["example_n_atoms"]
        assert len(arrays["frame_positions"]) == (steps * n_atoms).sum()
        # The steps end where the relaxation of all systems together ended.
        predicted = arrays["example_energies"][-3:, 1]
        np.testing.assert_allclose(arrays["frame_energies"][3::4], predicted, atol=1e-4)
        worst = slice(-int(n_atoms[-1]), None)
        ended = arrays["example_positions"][worst] + arrays["example_pred"][worst]
        np.testing.assert_allclose(arrays["frame_positions"][worst], ended, atol=1e-4)


def test_without_data_it_is_the_validation_data_of_the_run_and_a_report_shows_it(run, data, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    summary = evaluate_relaxations(copy, config=RelaxConfig(max_steps=0), beside=Beside(DIRECT), progress=False)
    assert list(summary["splits"]) == ["val_id", "val_ood_ads"]
    name = f"{data.name}-relax"
    assert summary["written"] == [str(copy / "evaluations" / name / "metrics.json")]
    page = write_report(copy, evaluations=(name,)).read_text()
    assert page.count('<tr class="model">') >= 2
    assert page.count(">allegro, direct<") == 2
    assert "0.0 steps and" in page
    assert "s by the direct model" in page


def test_a_direct_model_has_the_numbers_of_its_own_evaluation(run, data, tmp_path):
    how = {"config": RelaxConfig(max_steps=0), "progress": False}
    beside = evaluate_relaxations(run, data, beside=Beside(DIRECT), out=tmp_path / "relaxed", **how)["splits"]["val_id"]
    alone = evaluate(DIRECT, data, out=tmp_path / "direct", device="cpu", progress=False)["splits"]["val_id"]
    assert list(beside["rows"])[:2] == ["allegro, relaxed", "allegro, direct"]
    for metric, value in alone["rows"]["allegro"].items():
        assert beside["rows"]["allegro, direct"][metric] == pytest.approx(value, abs=1e-5), metric
    assert beside["relaxations"]["seconds_a_system_direct"] > 0


def test_the_relaxed_clean_slab_is_taken_off(run, data, tmp_path):
    """Energies are those of both relaxations, one less the other; structures are those of the first."""
    config = RelaxConfig(max_steps=2)
    how = {"beside": Beside(minus_clean_slab=True), "out": tmp_path / "out", "progress": False}
    split = evaluate_relaxations(run, data, config, **how)["splits"]["val_id"]
    initial = list(open_dataset(data / "is2re" / "val_id"))
    slabs = []
    for structure in initial:
        atoms = structure.to_ase()
        slabs.append(atoms[atoms.get_tags() != 2])
        assert 0 < len(slabs[-1]) < len(atoms)
    both = [relax(systems, run, config, progress=False).structures for systems in (initial, slabs)]
    errors = [abs(s.energy - slab.energy - i.relaxed_energy) for s, slab, i in zip(*both, initial, strict=True)]
    relaxed, less = list(split["rows"])[:2]
    assert (relaxed, less) == ("allegro, relaxed", "allegro, relaxed, less clean slab")
    assert split["rows"][less]["energy_mae"] == pytest.approx(sum(errors) / len(errors), abs=1e-5)
    assert split["rows"][less]["positions_mae"] == split["rows"][relaxed]["positions_mae"]
    assert split["rows"][less]["energy_mae"] != pytest.approx(split["rows"][relaxed]["energy_mae"], abs=1e-3)


def open_all(splits):
    return {name: open_dataset(path) for name, path in splits.items()}


def test_a_perfect_model_of_emt_data_has_no_error_and_small_forces(run, tmp_path, monkeypatch):
    """The data are EMT's own minima, and EMT stands in for the model that relaxes to them."""
    initial = structures(3)
    model, config = CalculatorForces(EMT, "total"), RelaxConfig(fmax=0.02)
    minima = relax(initial, model, config, progress=False).structures
    labelled = [
        type(s)(
            **{name: getattr(s, name) for name in ("numbers", "positions", "cell", "pbc", "fixed", "tags", "sid")},
            relaxed_energy=m.energy,
            relaxed_positions=m.positions,
        )
        for s, m in zip(initial, minima, strict=True)
    ]
    info = DatasetInfo("total", provenance={"generator": "equicat data emt"})
    write_store(tmp_path / "is2re" / "val_id", labelled, info)
    monkeypatch.setattr(module, "relax", lambda systems, _, *rest, **options: relax(systems, model, *rest, **options))
    monkeypatch.setattr(module, "with_frames", lambda examples, *_: examples)  # the run does not know its elements
    # The run that stands for the model knows neither these elements nor these energies.
    monkeypatch.setattr(module, "usable", lambda _, splits, *rest, **options: (open_all(splits), {}))
    summary = evaluate_relaxations(run, tmp_path, config, out=tmp_path / "out", progress=False)
    rows = summary["splits"]["val_id"]["rows"]
    perfect, still = rows["allegro, relaxed"], rows["mean energy, no displacement"]
    assert perfect["energy_mae"] == pytest.approx(0, abs=1e-9)
    assert perfect["positions_mae"] == pytest.approx(0, abs=1e-9)
    assert perfect["positions_average_distance_within_threshold"] == 1
    assert perfect["force_below_threshold"] == 1
    assert perfect["average_force_below_threshold"] > 0.97  # all thresholds above fmax
    assert still["average_force_below_threshold"] == 0
    assert still["positions_average_distance_within_threshold"] < 1
    relaxations = summary["splits"]["val_id"]["relaxations"]
    assert relaxations["success_rate"] == 1
    assert relaxations["classes"] == {"normal": 3, "migrated": 0, "anomaly": 0}
    assert relaxations["energy_mae_normal"] == pytest.approx(0, abs=1e-9)


def test_data_without_relaxed_energies_and_models_without_forces_are_refused(run, data, tmp_path):
    write(tmp_path / "bare.extxyz", structures(1))
    with pytest.raises(InputError, match="no label 'relaxed_energy'"):
        evaluate_relaxations(run, tmp_path / "bare.extxyz", progress=False, energy_reference="adsorption")
    with pytest.raises(InputError, match=r"'total' .*, the model predicts 'adsorption'.* say --energy_reference"):
        evaluate_relaxations(run, tmp_path / "bare.extxyz", progress=False)
    with pytest.raises(InputError, match="--direct takes a run that was trained for is2re or is2rs"):
        evaluate_relaxations(run, data, beside=Beside(run), progress=False)
    with pytest.raises(InputError, match="gives no forces"):
        evaluate_relaxations(DIRECT, data, progress=False)


def test_a_direct_run_without_relaxations_is_refused(run, capsys):
    assert main(["evaluate", str(run), "--direct", str(DIRECT)]) == 2
    assert "give --relax as well" in capsys.readouterr().err
