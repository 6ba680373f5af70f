"""Training end to end on a tiny data set: the run directory, what it learns, resuming, refusing."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_MODEL, configuration, labelled

import equicat
from equicat import InputError
from equicat.cli.main import main
from equicat.data.batch import Batch
from equicat.data.batches import batches
from equicat.data.datasets import open_dataset
from equicat.data.fitted import fit_statistics
from equicat.data.info import DatasetInfo
from equicat.data.readers import write
from equicat.data.store import write_store
from equicat.data.training_data import training_data
from equicat.training.callbacks import RunWriter
from equicat.training.config import from_mapping
from equicat.training.module import TrainingModule
from equicat.training.normalization import NormalizationConfig
from equicat.training.train import train


def rows(run) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_directory_holds_everything(run):
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "model.safetensors", "model.json", "environment.json"} <= names
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["avg_num_neighbors"] > 1
    assert json.loads((run / "environment.json").read_text())["versions"]["torch"]
    log = rows(run)
    assert [r["epoch"] for r in log] == ["0", "1", "2"]
    assert all(float(v) >= 0 or "cosine" in k for r in log for k, v in r.items()), "no cell is empty"


def test_training_lowers_the_loss(data, tmp_path):
    result = train(from_mapping(configuration(data, tmp_path / "run", run={"max_epochs": 12})))
    log = rows(result.run)
    assert float(log[-1]["train_loss"]) < 0.8 * float(log[0]["train_loss"])
    assert result.best_val_loss == pytest.approx(min(float(r["val_loss"]) for r in log), rel=1e-4)


def test_a_log_file_gets_lines_instead_of_a_bar(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("equicat.training.callbacks.SECONDS", 0.0)
    config = configuration(data, tmp_path / "run", run={"max_epochs": 2, "progress": True})
    capsys.readouterr()
    train(from_mapping(config))
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    said = [line for line in err.splitlines() if line.startswith("epoch ")]
    assert said[0].startswith("epoch 0, step 1, ")
    assert "val_loss" in said[-1]


def test_same_seed_same_weights(data, tmp_path):
    runs = [train(from_mapping(configuration(data, tmp_path / name))).run for name in "ab"]
    first, second = (equicat.load(r).state_dict() for r in runs)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_saved_model_is_the_average_that_was_validated(run, data):
    potential = equicat.load(run)
    dataset = open_dataset(data / "s2ef" / "val_id")
    batch = Batch.from_structures(list(dataset), potential.cutoff)
    error = (potential(batch).forces - batch.forces)[~batch.fixed].abs().mean().item()
    assert error == pytest.approx(min(float(r["val_forces_mae"]) for r in rows(run)), rel=1e-3)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_precision_of_matrix_products_while_training(data, tmp_path, monkeypatch, precision):
    """Numbers below the smallest normal one are zero meanwhile: products with them take a hundred times longer."""
    seen, step, tiny = [], TrainingModule.training_step, torch.tensor([1e-40])

    def watched(self, *args, **kwargs):
        seen.append((torch.get_float32_matmul_precision(), (tiny * 1).item()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    options = {"max_epochs": 1, "matmul_precision": precision}
    train(from_mapping(configuration(data, tmp_path / "run", run=options)))
    assert set(seen) == {(precision, 0.0)}
    assert torch.get_float32_matmul_precision() == "highest"
    assert (tiny * 1).item() > 0


def test_resume_goes_on(data, tmp_path):
    out = tmp_path / "run"
    train(from_mapping(configuration(data, out, run={"max_epochs": 2})))
    train(from_mapping(configuration(data, out, run={"max_epochs": 4, "resume": True})))
    log = rows(out)
    assert [r["epoch"] for r in log] == ["0", "1", "2", "3"]
    assert float(log[2]["time_s"]) >= float(log[1]["time_s"])


def test_resuming_keeps_the_best_model(data, tmp_path):
    out = tmp_path / "run"
    train(from_mapping(configuration(data, out, run={"max_epochs": 1})))
    text = (out / "metrics.csv").read_text()
    (out / "metrics.csv").write_text(text.replace(rows(out)[0]["val_loss"], "1e-9"))
    before = (out / "model.safetensors").read_bytes()
    result = train(from_mapping(configuration(data, out, run={"max_epochs": 2, "resume": True})))
    assert result.best_val_loss == 1e-9
    assert (out / "model.safetensors").read_bytes() == before, "a worse epoch does not replace a better one"


def test_resume_with_another_cutoff_is_refused(data, tmp_path):
    out = tmp_path / "run"
    train(from_mapping(configuration(data, out, run={"max_epochs": 1})))
    before = (out / "config.yaml").read_bytes()
    changed = configuration(data, out, run={"resume": True}, model={"cutoff": 5.0})
    with pytest.raises(InputError, match=r"model.cutoff is 5.0 in the configuration but 4.0 in the checkpoint"):
        train(from_mapping(changed))
    assert (out / "config.yaml").read_bytes() == before


def test_fine_tuning_starts_from_the_weights(run, data, tmp_path):
    tuned = configuration(
        data, tmp_path / "tuned", optimizer={"lr": 1e-30}, run={"max_epochs": 1, "init_from": str(run)}
    )
    result = train(from_mapping(tuned))
    first, second = equicat.load(run).state_dict(), equicat.load(result.run).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    tuned["model"]["cutoff"] = 6.0
    tuned["run"]["out"] = str(tmp_path / "other")
    with pytest.raises(InputError, match=r"model.cutoff is 6.0"):
        train(from_mapping(tuned))


def test_an_existing_run_is_not_overwritten(run, data):
    with pytest.raises(InputError, match=r"exists; choose another run.out"):
        train(from_mapping(configuration(data, run)))


# ---- replacing a run -----------------------------------------------------------------------------------------------

BAD_STARTS = {
    "an option": {"loss": {"energy_weight": 0.0}, "task": "is2re"},
    "data": {"data": {"train": ["nowhere.xyz"]}},
    "a label": {"noise": {"share": 0.5, "sigma": 0.1}},
    "a package": {"run": {"wandb": True}},
    "devices": {"run": {"devices": "two"}},
    "no such device": {"run": {"accelerator": "tpu"}},
    "fine-tuning": {"run": {"init_from": "nowhere"}},
    "the first step": {"optimizer": {"lr": 1e30, "gradient_clip": None, "schedule": "constant"}},
}


@pytest.mark.parametrize("parts", BAD_STARTS.values(), ids=BAD_STARTS)
def test_a_run_is_not_touched_by_a_start_that_fails(run, data, tmp_path, monkeypatch, parts):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "report.html").write_text("a report")
    before = {path.name: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    values = configuration(data, copy)
    for part, options in parts.items():
        values[part] = options if isinstance(options, str) else values.get(part, {}) | options
    values["run"]["overwrite"] = True
    with pytest.raises(InputError) as error:
        train(from_mapping(values))
    assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_is_replaced_by_the_first_model_of_the_new_one(run, data, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "report.html").write_text("a report")
    seen, save = [], RunWriter.on_train_epoch_end

    def watched(self, trainer, module):
        seen.append((copy / "report.html").is_file())
        save(self, trainer, module)
        seen.append((copy / "report.html").is_file())

    monkeypatch.setattr(RunWriter, "on_train_epoch_end", watched)
    options = {"overwrite": True, "max_epochs": 2, "val_every": 2, "tensorboard": True}
    train(from_mapping(configuration(data, copy, run=options)))
    assert seen == [True, True, True, False], "the first validation is that of the second epoch"
    assert len(rows(copy)) == 2
    assert list(copy.rglob("events.out.tfevents*"))
    assert equicat.load(copy).info.task == "s2ef"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_directory_that_is_no_run_is_not_overwritten(data, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no run"):
        train(from_mapping(configuration(data, tmp_path, run={"overwrite": True})))
    assert (tmp_path / "thesis.tex").exists()


def test_files_of_a_run_take_the_umask(run):
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in run.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_losses_do_not_depend_on_how_structures_are_batched(data, tmp_path):
    """Losses are means over all systems and all free atoms, not means of the means of batches."""
    options = {"lr": 1e-30, "ema_decay": None}
    found = []
    for size in (1, 5, 16):
        values = configuration(data, tmp_path / str(size), optimizer=options, run={"batch_size": size, "max_epochs": 1})
        (row,) = rows(train(from_mapping(values)).run)
        found.append([float(row["train_loss"]), float(row["val_loss"])])
    assert found[1:] == [pytest.approx(found[0], rel=1e-5)] * 2


@pytest.mark.parametrize("schedule", ["plateau", "cosine", "constant"])
def test_schedules_and_limits(data, tmp_path, schedule):
    warmup_steps = 0 if schedule == "plateau" else 2
    options = {"schedule": schedule, "warmup_steps": warmup_steps, "ema_decay": None, "gradient_clip": None}
    limits = {"max_epochs": 50, "max_minutes": 0.01, "early_stopping": 3}
    result = train(from_mapping(configuration(data, tmp_path / "run", optimizer=options, run=limits)))
    log = rows(result.run)
    assert len(log) < 50
    assert float(log[-1]["val_loss"]) > 0, "the last epoch is validated although time is up"
    if schedule == "cosine":
        assert float(log[-1]["lr"]) < 0.01


def wandb_ids(run):
    """Names of W&B's runs: folders are offline-run-TIME-ID, with one number more if they began in the same second."""
    return {path.name.split("-")[3] for path in (run / "wandb").glob("offline-run-*")}


def test_tensorboard_and_wandb_offline(data, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    limits = {"max_epochs": 1, "tensorboard": True, "wandb": True, "wandb_project": "copper", "wandb_name": "first"}
    run = tmp_path / "run"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configuration(data, run, run=limits)))
    assert main(["train", str(tmp_path / "config.yaml")]) == 0
    assert list(run.rglob("events.out.tfevents*"))
    assert len(wandb_ids(run)) == 1, "the figures are with the losses"
    pictures = {path.name.partition("_")[0] for path in (run / "wandb").rglob("media/**/*.png")}
    assert any("loss" in name or "force" in name for name in pictures), pictures
    first = min((run / "wandb").glob("offline-run-*"))
    logged = next(first.glob("*.wandb")).read_bytes()
    assert b"model.safetensors" in logged, "the model goes along"
    assert b"copper" in logged
    again, ids = limits | {"max_epochs": 2, "resume": True}, wandb_ids(run)
    train(from_mapping(configuration(data, run, run=again)))
    assert wandb_ids(run) == ids, "it is the same run"


def test_mlflow(data, tmp_path, monkeypatch):
    """A resumed run is the same one there; it has the configuration, the losses and the model."""
    tracking = pytest.importorskip("mlflow.tracking", reason="MLflow is not installed (extra: mlflow)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for epochs in (1, 2):
        options = {"max_epochs": epochs, "mlflow": True, "resume": epochs > 1}
        train(from_mapping(configuration(data, tmp_path / "run", run=options)))
    client = tracking.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("equicat").experiment_id])
    assert found.info.run_id == (tmp_path / "run" / "mlflow_run").read_text().strip()
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["run/batch_size"] == "4"
    assert len(client.get_metric_history(found.info.run_id, "val_loss")) == 2
    paths = {artifact.path for artifact in client.list_artifacts(found.info.run_id, "model")}
    assert paths == {"model/model.json", "model/model.safetensors"}


def test_a_loss_that_explodes_stops_the_run(data, tmp_path):
    options = {"lr": 1e30, "gradient_clip": None, "schedule": "constant"}
    limit = {"max_skipped_steps": 2}
    with pytest.raises(InputError, match=r"training loss is (nan|inf) at epoch \d+, batch \d+ .*; 3 steps were not"):
        train(from_mapping(configuration(data, tmp_path / "run", optimizer=options, run=limit)))


def test_statistics_recover_a_linear_law(data):
    dataset = open_dataset(data / "s2ef" / "train")
    fitted = fit_statistics(dataset, 4.0)
    assert fitted.elements == (8, 29)
    # labelled(): −1.5 eV for each O; the rest of the energy is a small pair term.
    assert fitted.linear_reference[0] - fitted.linear_reference[1] == pytest.approx(-1.5, abs=0.3)
    free = ~dataset.array("fixed")
    assert fitted.forces_rms == pytest.approx(np.sqrt(np.mean(dataset.array("forces")[free] ** 2)))
    edges = sum(Batch.from_structures([s], 4.0).n_edges for s in dataset)
    assert fitted.avg_num_neighbors == pytest.approx(edges / sum(dataset.n_atoms))


@pytest.mark.parametrize(
    ("references", "message"),
    [({"Cu": 1.0}, r"no energy for the elements with numbers \[8\]"), ({"Xx": 1.0}, "no element 'Xx'")],
)
def test_bad_references(data, tmp_path, references, message):
    values = configuration(data, tmp_path / "run", normalization={"references": references})
    with pytest.raises(InputError, match=message):
        train(from_mapping(values))
    assert not (tmp_path / "run").exists()


def test_given_references_reach_the_model(data, tmp_path):
    values = configuration(data, tmp_path / "run", normalization={"references": {"O": -4.0, "Cu": -2.5}, "scale": 2.0})
    values["run"]["max_epochs"] = 1
    potential = equicat.load(train(from_mapping(values)).run)
    assert potential.reference_energies.tolist() == [-4.0, -2.5]
    assert potential.scale.item() == 2.0
    assert NormalizationConfig().references is None


# ---- data that cannot be trained on ------------------------------------------------------------------------------


def test_frames_without_forces_are_refused(tmp_path):
    s = labelled(0)
    write(tmp_path / "a.extxyz", [equicat.Structure(s.numbers, s.positions, s.cell, s.pbc, energy=1.0, sid="x")] * 4)
    values = configuration(tmp_path / "a.extxyz", tmp_path / "run", data_options={"val": []})
    with pytest.raises(InputError, match=r"a.extxyz, frame 0: no label 'forces'; found energy, sid"):
        train(from_mapping(values))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": []}, "data.train is empty"),
        ({"train": ["nowhere.xyz"]}, "nowhere.xyz: no such file"),
        ({"n_train": 99}, "data.n_train asks for 99 structures"),
        ({"val": [], "n_train": 15, "n_val": 15}, "cannot give 15 to train and 15 to validate"),
        ({"energy_reference": "total"}, "energies are 'adsorption', not 'total'"),
    ],
)
def test_bad_data_options(data, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        train(from_mapping(configuration(data, tmp_path / "run", data_options=options)))


def test_an_empty_selection_is_refused(tmp_path):
    write(tmp_path / "a.extxyz", [labelled(0)])
    values = configuration(tmp_path / "a.extxyz", tmp_path / "run", data_options={"train_where": {"split": "train"}})
    with pytest.raises(InputError, match="no structures"):
        train(from_mapping(values))


def test_two_kinds_of_energy_are_not_mixed(data, tmp_path):
    write_store(tmp_path / "val", [labelled(0)], DatasetInfo("total"))
    values = configuration(data, tmp_path / "run", data_options={"val": [str(tmp_path / "val")]})
    with pytest.raises(InputError, match="training energies are 'adsorption', validation energies 'total'"):
        train(from_mapping(values))


def test_draws_do_not_overlap_and_are_reproducible(data):
    config = from_mapping({"data": {"train": [str(data)], "n_train": 9, "n_val": 4}, "model": TINY_MODEL}).data
    one, two = training_data(config, "s2ef", ("energy",)), training_data(config, "s2ef", ("energy",))
    assert [len(d) for d in one] == [9, 4]
    assert [s.sid for d in one for s in d] == [s.sid for d in two for s in d]
    assert len({s.sid for d in one for s in d}) == 13
    assert one[0].array("numbers").tolist() == np.concatenate([s.numbers for s in one[0]]).tolist()
    assert one[0].array("energy").tolist() == [s.energy for s in one[0]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_yields_every_structure_once(data, num_workers):
    dataset = open_dataset(data / "s2ef" / "train")
    loader = batches(dataset, 4.0, 5, shuffle_seed=0, num_workers=num_workers)
    ids = [i for batch in loader for i in batch.ids]
    assert sorted(ids) == sorted(s.id for s in dataset)
    assert [batch.n_systems for batch in loader] == [4, 4, 4, 4], "as equal as can be"


def test_a_run_that_stops_by_time_validates_its_last_epoch(data, tmp_path):
    options = {"max_epochs": 1000, "max_minutes": 1e-4, "val_every": 500}
    result = train(from_mapping(configuration(data, tmp_path / "run", run=options)))
    assert rows(result.run)[-1]["val_forces_mae"]
    assert equicat.load(result.run).info.task == "s2ef"
    with pytest.raises(InputError, match=r"run\.val_every is 5 and run\.max_epochs 3"):
        from_mapping(configuration(data, tmp_path / "run", run={"val_every": 5}))
