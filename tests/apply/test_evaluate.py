"""Evaluations: what they write where, what they say of the data, and what they refuse."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import configuration, labelled

from equicat.apply.evaluate import evaluate, evaluate_validation
from equicat.apply.remarks import no_better_than_a_guess, overfitting
from equicat.apply.results import as_text, folder_for
from equicat.data.info import DatasetInfo
from equicat.data.readers import write
from equicat.data.store import write_store
from equicat.data.training_data import DataConfig, training_data
from equicat.errors import InputError
from equicat.report.page import write_report
from equicat.training.config import from_mapping
from equicat.training.train import train

QUIET = {"progress": False, "outside_training": "ignore"}


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run that the test may write to."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*", "predictions"))


def store(path, seeds, reference="adsorption", **changes):
    frames = [dataclasses.replace(labelled(seed), **changes) for seed in seeds]
    write_store(path, frames, DatasetInfo(reference))
    return path


def test_other_data_leave_the_validation_of_the_run_alone(own, tmp_path, monkeypatch):
    monkeypatch.setattr("equicat.report.figures._svg", lambda figure, label: "<svg></svg>")  # drawing takes seconds
    evaluate_validation(own, **QUIET)
    before = (own / "evaluation.json").read_bytes(), (own / "predictions" / "val.npz").read_bytes()
    page = write_report(own).read_text()
    summary = evaluate(own, store(tmp_path / "other", [40, 41]), **QUIET)
    assert ((own / "evaluation.json").read_bytes(), (own / "predictions" / "val.npz").read_bytes()) == before
    folder = own / "evaluations" / "other"
    assert summary["written"] == [str(folder / "metrics.json")]
    assert json.loads((folder / "metrics.json").read_text())["data"] == str(tmp_path / "other")
    assert (folder / "predictions" / "other.npz").is_file()
    after = write_report(own).read_text()
    tables = [text[text.index("<h2>Data") :] for text in (page, after)]
    assert tables[0] == tables[1], "figures and all else are those of before"


def test_data_of_one_name_do_not_replace_each_other(own, tmp_path):
    first, second = (store(tmp_path / place / "mine", [seed]) for place, seed in (("a", 40), ("b", 41)))
    for data in (first, second, first):
        evaluate(own, data, **QUIET)
    found = {
        path.parent.name: json.loads(path.read_text())["data"] for path in (own / "evaluations").glob("*/metrics.json")
    }
    assert found == {"mine": str(first), "mine-2": str(second)}


def test_files_that_are_all_called_alike_are_named_by_their_folder(own, tmp_path):
    (tmp_path / "O_fcc").mkdir()
    write(tmp_path / "frames.extxyz", [labelled(40)])
    data = (tmp_path / "frames.extxyz").rename(tmp_path / "O_fcc" / "OUTCAR")
    with pytest.raises(InputError, match="OUTCAR"):  # its content is no OUTCAR
        evaluate(own, data, **QUIET)
    assert folder_for(own, data).name == "O_fcc-OUTCAR"
    assert folder_for(own, tmp_path / "b.extxyz.gz", "minus_clean_slab").name == "b-minus_clean_slab"


def test_results_go_where_they_are_asked_to_and_replace_nothing_else(own, tmp_path):
    data, out = store(tmp_path / "other", [40]), tmp_path / "results"
    evaluate(own, data, **QUIET, out=out)
    evaluate(own, data, **QUIET, out=out)
    assert {path.name for path in out.iterdir()} == {"metrics.json", "predictions"}
    assert not (own / "evaluations").exists()
    with pytest.raises(InputError, match="holds other things than an evaluation"):
        evaluate(own, data, **QUIET, out=own)
    with pytest.raises(InputError, match="is a file"):
        evaluate(own, data, **QUIET, out=own / "model.json" / "x")


def test_systems_are_counted_not_frames(own, tmp_path):
    frames = [dataclasses.replace(labelled(40 + k), sid=sid, fid=k) for k, sid in enumerate("aab")]
    write_store(tmp_path / "frames", frames, DatasetInfo("adsorption"))
    summary = evaluate(own, tmp_path / "frames", **QUIET)
    assert summary["splits"]["frames"]["n_structures"] == 3
    assert summary["splits"]["frames"]["n_systems"] == 2
    text = as_text(summary)
    assert "frames: 3 frames of 2 systems" in text
    assert "0 of 2 systems were trained on" in text
    assert "Note: errors from few systems say little about the next one" in text
    assert "several-fold: frames 3 frames of 2 systems." in text


def test_what_was_trained_on_is_recognised(own, data, tmp_path):
    """A store is compared by sid, a file without ids by structure, in another order of atoms and with fewer digits."""
    assert evaluate(own, data / "s2ef" / "train", **QUIET)["splits"]["train"]["n_trained_on"] == 16
    rng = np.random.default_rng(0)
    anonymous = []
    for seed in (3, 5, 90):
        s = labelled(seed)
        order = rng.permutation(len(s))
        arrays = {name: getattr(s, name)[order] for name in ("numbers", "forces", "fixed", "tags")}
        positions = np.round(s.positions[order], 5) + s.cell[0] * (np.arange(len(s)) % 2)[:, None]
        anonymous.append(dataclasses.replace(s, **arrays, positions=positions, sid="", fid=None))
    write(tmp_path / "file.extxyz", anonymous)
    summary = evaluate(own, tmp_path / "file.extxyz", **QUIET, energy_reference="adsorption")
    assert summary["splits"]["file"]["n_trained_on"] > 0
    assert any("systems were trained on" in remark for remark in summary["remarks"])
    val = evaluate(own, data / "s2ef" / "val_id", **QUIET)["splits"]["val_id"]
    assert (val["n_trained_on"], val["n_chose_checkpoint"]) == (0, 6)
    assert "they also chose the checkpoint; 0 of 6 systems were trained on" in as_text(
        {
            "energy_reference": "adsorption",
            "splits": {"val_id": val},
        }
    )


def test_runs_that_do_not_know_what_they_were_trained_on_say_nothing_of_it(own, data):
    (own / "trained_on.npz").unlink()
    summary = evaluate(own, data / "s2ef" / "train", **QUIET)
    assert summary["splits"]["train"]["n_trained_on"] is None
    assert "trained on" not in as_text(summary)
    (own / "trained_on.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match=r"trained_on\.npz: damaged"):
        evaluate(own, data / "s2ef" / "train", **QUIET)


def test_a_split_that_cannot_be_judged_is_skipped_and_said(own, tmp_path):
    root = tmp_path / "data"
    store(root / "s2ef" / "val_id", [40, 41])
    store(root / "s2ef" / "val_ood_cat", [42], numbers=np.where(labelled(42).numbers == 29, 47, 8))
    store(root / "s2ef" / "test_id", [43], forces=None)
    summary = evaluate(own, root, **QUIET)
    assert list(summary["splits"]) == ["val_id"]
    assert "holds Ag, and the model was trained without; it knows O, Cu" in summary["skipped"]["val_ood_cat"]
    assert "no label 'forces'" in summary["skipped"]["test_id"]
    assert "val_ood_cat: skipped: " in as_text(summary)
    with pytest.raises(InputError, match="holds Ag"):
        evaluate(own, root / "s2ef" / "val_ood_cat", **QUIET)


def test_energies_of_two_kinds_are_refused_before_anything_is_computed(own, tmp_path):
    root = tmp_path / "data"
    store(root / "s2ef" / "val_id", [40])
    store(root / "s2ef" / "val_ood_cat", [41], "total")
    with pytest.raises(InputError, match=r"'total', the model predicts 'adsorption' ones; the two cannot be mixed$"):
        evaluate(own, root, **QUIET)
    assert not (own / "evaluations").exists()


def test_a_file_is_taken_for_total_energies_and_that_is_said(own, data, tmp_path):
    values = configuration(data, tmp_path / "total", run={"max_epochs": 1})
    write(tmp_path / "train.extxyz", [labelled(k) for k in range(8)])
    write(tmp_path / "val.extxyz", [labelled(k) for k in range(8, 12)])
    values["data"] = {"train": [str(tmp_path / "train.extxyz")], "val": [str(tmp_path / "val.extxyz")]}
    run = train(from_mapping(values)).run
    summary = evaluate(run, tmp_path / "val.extxyz", **QUIET)
    assert "Energies: total (assumed of a file; --energy_reference says otherwise)." in as_text(summary)
    assert "assumed" not in as_text(evaluate(run, tmp_path / "val.extxyz", **QUIET, energy_reference="total"))


# ---- the model's own clean slab --------------------------------------------------------------------------------------


def test_the_clean_slab_is_taken_off(own, tmp_path):
    """A slab without its adsorbate then has no energy, and forces stay as they are."""
    data = store(tmp_path / "mine", [40, 41])
    plain, corrected = (
        evaluate(own, data, **QUIET, minus_clean_slab=on, out=tmp_path / f"out{on}") for on in (False, True)
    )
    assert "minus the model's own clean slab" in as_text(corrected)
    arrays = [np.load(tmp_path / f"out{on}" / "predictions" / "mine.npz") for on in (False, True)]
    np.testing.assert_array_equal(arrays[0]["forces_pred"], arrays[1]["forces_pred"])
    bare = []
    for seed in (40, 41):
        s = labelled(seed)
        kept = s.tags != 2
        fields = {name: getattr(s, name)[kept] for name in ("numbers", "positions", "fixed", "tags", "forces")}
        bare.append(dataclasses.replace(s, **fields))
    write_store(tmp_path / "bare", bare, DatasetInfo("adsorption"))
    evaluate(own, tmp_path / "bare", **QUIET, out=tmp_path / "out")
    slab = np.load(tmp_path / "out" / "predictions" / "bare.npz")["energy_pred"]
    np.testing.assert_allclose(arrays[1]["energy_pred"], arrays[0]["energy_pred"] - slab, atol=1e-5)
    evaluate(own, tmp_path / "bare", **QUIET, minus_clean_slab=True, out=tmp_path / "zero")
    assert np.abs(np.load(tmp_path / "zero" / "predictions" / "bare.npz")["energy_pred"]).max() < 1e-6
    assert plain["minus_clean_slab"] is False


@pytest.mark.parametrize(
    ("tags", "message"),
    [(0, "no atom has a tag, so its adsorbate is not known"), (2, "every atom has tag 2, so no slab is left")],
)
def test_a_clean_slab_needs_tags(own, tmp_path, tags, message):
    data = store(tmp_path / "mine", [40], tags=np.full(len(labelled(40)), tags))
    with pytest.raises(InputError, match=message):
        evaluate(own, data, **QUIET, minus_clean_slab=True)
    assert not (own / "evaluations").exists(), "nothing half-written"


def test_the_validation_without_clean_slabs_is_kept_beside_the_validation(own):
    evaluate_validation(own, **QUIET)
    before = (own / "evaluation.json").read_bytes()
    summary = evaluate_validation(own, **QUIET, minus_clean_slab=True)
    assert (own / "evaluation.json").read_bytes() == before
    assert summary["written"] == [str(own / "evaluations" / "val-minus_clean_slab" / "metrics.json")]


def test_only_adsorption_energies_have_a_clean_slab_of_zero(data, tmp_path):
    values = configuration(data / "s2ef" / "train", tmp_path / "run", run={"max_epochs": 1})
    info = DatasetInfo("total")
    write_store(tmp_path / "train", [labelled(k) for k in range(4)], info)
    write_store(tmp_path / "val", [labelled(k) for k in range(4, 6)], info)
    values["data"] = {"train": [str(tmp_path / "train")], "val": [str(tmp_path / "val")]}
    run = train(from_mapping(values)).run
    with pytest.raises(InputError, match="minus_clean_slab: is for adsorption energies"):
        evaluate_validation(run, **QUIET, minus_clean_slab=True)


def test_relaxed_energies_lose_the_slab_too(data, tmp_path):
    values = configuration(data, tmp_path / "run", run={"max_epochs": 1}) | {"task": "is2re"}
    run = train(from_mapping(values)).run
    arrays = []
    for on in (False, True):
        evaluate(run, data / "is2re" / "val_id", **QUIET, minus_clean_slab=on, out=tmp_path / str(on))
        arrays.append(np.load(tmp_path / str(on) / "predictions" / "val_id.npz")["energy_pred"])
    assert np.abs(arrays[0] - arrays[1]).min() > 1e-3


# ---- training and validation data ------------------------------------------------------------------------------------


def test_one_store_or_file_for_both_is_warned_of(data, tmp_path):
    path = data / "s2ef" / "train"
    link = tmp_path / "link"
    link.symlink_to(path)
    write(tmp_path / "a.extxyz", [labelled(k) for k in range(4)])
    (tmp_path / "b.extxyz").symlink_to(tmp_path / "a.extxyz")
    for train_path, val_path in (
        (path, path),
        (path, link),
        (tmp_path / "a.extxyz", tmp_path / "a.extxyz"),
        (tmp_path / "*.extxyz", tmp_path / "b.extxyz"),
    ):
        reference = None if Path(train_path).is_dir() else "adsorption"
        config = DataConfig((str(train_path),), (str(val_path),), energy_reference=reference)
        with pytest.warns(UserWarning, match="is both training and validation data"):
            training_data(config, "s2ef", ("energy", "forces"))


def test_one_file_divided_by_its_own_words_is_fine(data, tmp_path):
    frames = []
    for k in range(8):
        s, part = labelled(k // 2), "train" if k % 2 else "val"
        moved = s.positions + 0.1 * k * (s.tags == 2)[:, None]
        frames.append(dataclasses.replace(s, positions=moved, fid=k, info={"part": part}))
    write(tmp_path / "a.extxyz", frames)
    options = {"train": [str(tmp_path / "a.extxyz")], "val": [str(tmp_path / "a.extxyz")]}
    options |= {"train_where": {"part": "train"}, "val_where": {"part": "val"}}
    values = configuration(data, tmp_path / "run", data_options=options, run={"max_epochs": 1})
    summary = evaluate_validation(train(from_mapping(values)).run, **QUIET)
    assert summary["splits"]["val"]["n_trained_on"] == 4, "other frames of the same relaxations"
    options["val_where"] = {}
    with pytest.warns(UserWarning, match=r"a\.extxyz, frame 1: is both training and validation data"):
        train(from_mapping(configuration(data, tmp_path / "other", data_options=options)))


def test_fine_tuning_remembers_what_came_before(run, data, tmp_path):
    for split, seeds in {"train": range(50, 54), "val_id": range(54, 56)}.items():
        store(tmp_path / "more" / "s2ef" / split, seeds)
    values = configuration(tmp_path / "more", tmp_path / "tuned", run={"init_from": str(run), "max_epochs": 1})
    tuned = train(from_mapping(values)).run
    for path, n in ((data / "s2ef" / "train", 16), (tmp_path / "more" / "s2ef" / "train", 4)):
        assert evaluate(tuned, path, **QUIET)["splits"]["train"]["n_trained_on"] == n
    domain = json.loads((tuned / "model.json").read_text())["domain"]
    assert domain["n_structures"] == 20


def test_the_run_says_what_it_was_trained_on(run, data):
    origin = json.loads((run / "data.json").read_text())
    assert origin["train"]["n_systems"] == 16
    assert (origin["val"]["n_systems"], origin["val"]["n_structures"]) == (6, 6)
    assert [part["path"].split("/")[-1] for part in origin.values()] == ["train", "val_id"]
    assert origin["train"]["reference_energies"] == {"H2": -6.7}
    assert origin["val"]["drawn_from_training_data"] is False


# ---- remarks ---------------------------------------------------------------------------------------------------------


def test_a_model_that_is_no_better_than_a_guess_is_remarked_upon():
    guess = {"energy_mae": 0.5, "forces_mae": 0.14}
    other = {"energy_mae": 1.5, "forces_mae": 0.14}
    rows = {"schnet": {"energy_mae": 0.499, "forces_mae": 0.10}, "linear reference, F = 0": guess, "mean": other}
    (line,) = no_better_than_a_guess(rows)
    assert line.startswith("energy MAE 0.4990 eV is no better than the baseline 'linear reference, F = 0' (0.5000)")
    rows["schnet"] = {"energy_mae": 0.1, "forces_mae": float("nan")}
    assert "force MAE nan" in no_better_than_a_guess(rows)[0]
    rows["schnet"] = {"energy_mae": 0.1, "forces_mae": 0.01}
    assert no_better_than_a_guess(rows) == []


def test_training_errors_far_below_validation_errors_are_remarked_upon():
    (line,) = overfitting({"forces_mae": 0.002, "energy_mae": 0.01}, {"forces_mae": 0.025, "energy_mae": 0.02})
    assert line.startswith("force MAE 0.0020 eV/Å in training, 0.0250 in validation: the model knows its training data")
    assert overfitting({"forces_mae": 0.02}, {"forces_mae": 0.025}) == []
    assert overfitting({}, {"forces_mae": 0.025}) == [], "a run without a log"
