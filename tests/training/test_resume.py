"""Going on with a run: what it keeps, what may change, what is refused, and when nothing is left to do."""

import csv
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import configuration, labelled
from safetensors.torch import load_file

import equicat
from equicat import InputError
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.run_directory import read_checkpoint
from equicat.training.callbacks import RunWriter
from equicat.training.config import from_mapping
from equicat.training.train import train

STEADY = {"schedule": "constant"}


def go(data, out, n_epochs, data_options=None, run=None, **parts):
    """Train, or with ``run={"resume": True}`` train on, until that many epochs are done."""
    options = {"max_epochs": n_epochs} | (run or {})
    return train(from_mapping(configuration(data, out, data_options, run=options, **parts)))


def resume(data, out, n_epochs, data_options=None, run=None, **parts):
    return go(data, out, n_epochs, data_options, {"resume": True} | (run or {}), **parts)


def rows(run) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def begun(data, tmp_path_factory):
    """A run of two epochs; treat as read-only."""
    return go(data, tmp_path_factory.mktemp("runs") / "begun", 2).run


@pytest.fixture
def copy(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def files(run) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


# ---- what it keeps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5, "lr": 0.3},
        {"name": "muon", "schedule": "cosine", "warmup_steps": 6, "ema_decay": None},
    ],
    ids=["plateau", "cosine"],
)
def test_a_resumed_run_ends_as_one_that_was_not_interrupted(data, tmp_path, optimizer):
    options = {"optimizer": optimizer, "run": {"dtype": "float64"}}
    go(data, tmp_path / "whole", 4, **options)
    if optimizer["schedule"] == "cosine":  # its rates depend on the length of the run, which stays
        values = configuration(data, tmp_path / "parts", **options)
        values["run"]["max_epochs"] = 4
        stopped_after(from_mapping(values), 2)
    else:
        go(data, tmp_path / "parts", 2, **options)
    resume(data, tmp_path / "parts", 4, **options)
    whole, parts = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    for row in (*whole, *parts):
        del row["time_s"]
    assert whole == parts
    assert len({row["lr"] for row in whole}) > 1, "the schedule did something"
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def stopped_after(config, n_epochs):
    """A run that is killed after so many epochs."""
    keep = RunWriter.on_train_epoch_end

    def and_stop(self, trainer, module):
        keep(self, trainer, module)
        if trainer.current_epoch + 1 == n_epochs:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "on_train_epoch_end", and_stop)
        with pytest.raises(RuntimeError, match="killed"):
            train(config)


def test_the_last_checkpoint_is_that_of_the_last_epoch(data, tmp_path):
    """An epoch is never done twice, even if validation gets worse, and metrics.csv has one row of each."""
    options = {"optimizer": {"lr": 0.3, "ema_decay": None, "gradient_clip": None} | STEADY}
    run = go(data, tmp_path / "run", 3, **options).run
    losses = [float(row["val_loss"]) for row in rows(run)]
    assert losses[-1] > min(losses), "or this tests nothing"
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 2
    assert read_checkpoint(run / "checkpoints" / "best.ckpt")["epoch"] == int(np.argmin(losses))
    resume(data, run, 4, **options)
    assert [row["epoch"] for row in rows(run)] == ["0", "1", "2", "3"]


def test_checkpoints_do_not_wait_for_validations(data, tmp_path):
    run = go(data, tmp_path / "run", 3, run={"val_every": 2}).run
    assert read_checkpoint(run / "checkpoints" / "last.ckpt")["epoch"] == 2
    resume(data, run, 4, run={"val_every": 2})
    assert [bool(row["val_loss"]) for row in rows(run)] == [False, True, False, True]


def test_rows_beyond_the_checkpoint_are_dropped(data, copy):
    """A kill may come between a row and its checkpoint, and in the middle of a row."""
    before = (copy / "metrics.csv").read_text()
    last = before.splitlines()[-1].split(",")
    more = ",".join(["2", str(int(last[1]) + 4), *last[2:]])
    (copy / "metrics.csv").write_text(before + f"{more}\n3,16,0.")
    resume(data, copy, 3)
    assert [row["epoch"] for row in rows(copy)] == ["0", "1", "2"]
    assert (copy / "metrics.csv").read_text().startswith(before)
    assert rows(copy)[2]["val_loss"] != last[10], "done again, not kept"


def test_the_run_keeps_its_constants(data, copy, begun):
    resume(data, copy, 3)
    before, after = (json.loads((run / "model.json").read_text()) for run in (begun, copy))
    assert before == after
    before, after = (load_file(run / "model.safetensors") for run in (begun, copy))
    assert all(torch.equal(before[name], after[name]) for name in ("reference_energies", "scale"))


def test_a_run_that_was_moved_goes_on_with_data_that_were_moved(data, begun, tmp_path):
    shutil.copytree(data, tmp_path / "elsewhere")
    resume(tmp_path / "elsewhere", shutil.copytree(begun, tmp_path / "run"), 3)
    assert len(rows(tmp_path / "run")) == 3


# ---- what may change -----------------------------------------------------------------------------------------------


def test_another_rate_is_used_and_said(data, copy, capsys):
    resume(data, copy, 3, optimizer={"lr": 0.5} | STEADY)
    assert float(rows(copy)[-1]["lr"]) == 0.5
    assert yaml.safe_load((copy / "config.yaml").read_text())["optimizer"]["lr"] == 0.5
    said = capsys.readouterr().out
    assert "goes on after 2 epochs" in said
    assert "optimizer.lr 0.5 instead of 0.01" in said
    assert "with learning rate 0.5" in said


def test_another_schedule_is_used_from_its_place_in_the_run(data, copy, capsys):
    resume(data, copy, 4, optimizer={"schedule": "milestones", "milestones": [12]})
    assert [float(row["lr"]) for row in rows(copy)] == pytest.approx([0.01, 0.01, 0.01, 0.001])
    assert "optimizer.schedule milestones instead of plateau" in capsys.readouterr().out


def test_batches_weight_decay_and_patience_may_change(data, copy):
    options = {"batch_size": 8, "seed": 5, "early_stopping": 1, "val_batch_size": 2}
    resume(data, copy, 3, run=options, optimizer={"weight_decay": 0.3})
    last = read_checkpoint(copy / "checkpoints" / "last.ckpt")
    assert [group["weight_decay"] for group in last["optimizer_states"][0]["param_groups"]] == [0.3]
    assert int(rows(copy)[-1]["step"]) - int(rows(copy)[-2]["step"]) == 2
    assert yaml.safe_load((copy / "config.yaml").read_text())["run"]["batch_size"] == 8


def test_averaging_may_begin_and_end(data, copy):
    resume(data, copy, 3, optimizer={"ema_decay": None})
    resume(data, copy, 4, optimizer={"ema_decay": 0.5})
    assert len(rows(copy)) == 4


def test_options_that_were_settled_need_not_be_said_again(data, tmp_path):
    """Null stands for what the run has; config.yaml still says what it is."""
    given = {"references": {"O": -4.0, "Cu": -2.5}, "scale": 2.0}
    run = go(data, tmp_path / "run", 1, normalization=given).run
    resume(data, run, 2)
    assert yaml.safe_load((run / "config.yaml").read_text())["normalization"] == given | {"displacement_scale": None}
    resume(data, run, 3, normalization=given)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("optimizer", {"name": "muon"}, "optimizer.name is muon in the configuration but adam in the run"),
        ("optimizer", {"amsgrad": True}, "optimizer.amsgrad is True"),
        ("loss", {"forces_weight": 1.0}, "loss.forces_weight is 1.0 in the configuration but 30.0"),
        ("normalization", {"scale": 3.0}, "normalization.scale is 3.0 in the configuration but None"),
        ("normalization", {"references": "none"}, "normalization.references is none in the configuration but linear"),
        ("run", {"dtype": "float64"}, "run.dtype is float64"),
        ("run", {"init_from": "elsewhere"}, "run.init_from is elsewhere"),
        ("model", {"l_max": 2}, "model.l_max is 2 in the configuration but 1"),
    ],
)
def test_a_change_that_makes_another_run_is_refused(data, copy, part, options, message):
    before = files(copy)
    parts = {part: options} if part != "run" else {}
    with pytest.raises(InputError, match=message):
        resume(data, copy, 3, run=options if part == "run" else {}, **parts)
    assert files(copy) == before


def other_data(folder, structures, reference="adsorption"):
    write_store(folder / "s2ef" / "train", structures, DatasetInfo(reference, {"H2": -6.7}))
    return {"train": [str(folder / "s2ef" / "train")]}


@pytest.mark.parametrize("kind", ["more", "fewer elements", "other energies", "other validation", "another reference"])
def test_other_data_are_refused(data, copy, tmp_path, kind):
    train_set = [labelled(seed) for seed in range(16)]
    if kind == "more":
        options, message = other_data(tmp_path / "d", [*train_set, labelled(99)]), "structures: 17 instead of 16"
    elif kind == "fewer elements":
        copper = [dataclasses.replace(s, numbers=np.full(len(s), 29)) for s in train_set]
        options, message = other_data(tmp_path / "d", copper), "elements: Cu instead of O, Cu"
    elif kind == "other energies":
        shifted = [dataclasses.replace(s, energy=s.energy + 1e-3) for s in train_set]
        options, message = other_data(tmp_path / "d", shifted), "these training data are not those of the run .energy"
    elif kind == "other validation":
        options, message = {"n_val": 3}, "these validation data are not those of the run"
    else:
        val = other_data(tmp_path / "v", [labelled(seed) for seed in range(16, 22)], "total")["train"]
        options = other_data(tmp_path / "d", train_set, "total") | {"val": val}
        message = "its energies are 'total', the model predicts 'adsorption' ones"
    before = files(copy)
    with pytest.raises(InputError, match=message):
        resume(data, copy, 3, options)
    assert files(copy) == before


@pytest.mark.parametrize("damage", ["cut off", "empty", "text", "another program's", "one bit"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(data, copy, capsys, damage):
    last, previous = copy / "checkpoints" / "last.ckpt", copy / "checkpoints" / "previous.ckpt"
    damaged = {"cut off": last.read_bytes()[:1000], "empty": b"", "text": b"hello\n"}
    if damage == "another program's":
        torch.save({"weights": torch.zeros(3)}, last)
    elif damage == "one bit":
        content = torch.load(last)
        content["state_dict"]["model.scale"] += 1e-6
        torch.save(content, last)
    else:
        last.write_bytes(damaged[damage])
    resume(data, copy, 3)
    said = capsys.readouterr().err
    assert "last.ckpt: damaged (" in said
    assert f"going on from {previous}, after 1 epochs" in said
    assert [row["epoch"] for row in rows(copy)] == ["0", "1", "2"]


def test_without_a_whole_checkpoint_nothing_is_resumed(data, copy):
    for path in (copy / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = files(copy)
    with pytest.raises(InputError, match=r"last.ckpt: damaged .*best.ckpt: damaged .*; there is no other whole") as e:
        resume(data, copy, 3)
    assert "\n" not in str(e.value)
    assert files(copy) == before


class Code:
    """A thing that runs a command when pickle loads it."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_checkpoint_with_code_in_it_is_refused_by_name(data, copy, tmp_path):
    """The one before is not taken in silence: somebody has put something there."""
    last = copy / "checkpoints" / "last.ckpt"
    torch.save(torch.load(last) | {"extra": Code(f"touch {tmp_path / 'run_by_pickle'}")}, last)
    with pytest.raises(InputError, match=r"last.ckpt: asks for \w+.system; a checkpoint of equicat holds nothing but"):
        resume(data, copy, 3)
    assert not (tmp_path / "run_by_pickle").exists()


def test_a_checkpoint_of_another_model_is_refused_in_one_line(data, copy):
    description = json.loads((copy / "model.json").read_text())
    description["statistics"]["elements"] = [1, *description["statistics"]["elements"]]
    description["statistics"]["linear_reference"] = [0.0, *description["statistics"]["linear_reference"]]
    (copy / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"last.ckpt: does not fit model.json") as error:
        resume(data, copy, 3)
    assert "\n" not in str(error.value)


def test_a_directory_without_checkpoints_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="nothing to resume"):
        resume(data, tmp_path / "nowhere", 3)


# ---- nothing to do -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 2}, "all 2 epochs are done; raise run.max_epochs"),
        ({"max_minutes": 1e-5}, "minutes are used up; raise run.max_minutes"),
        ({"early_stopping": 1}, "val_loss has not become better in 1 validations; raise run.early_stopping"),
    ],
)
def test_a_finished_run_has_nothing_to_do(data, copy, capsys, options, message):
    """A finished run is not trained for one more step, and the message says so."""
    if "early_stopping" in options:
        text = (copy / "metrics.csv").read_text()
        (copy / "metrics.csv").write_text(text.replace(rows(copy)[0]["val_loss"], "1e-9"))
    before = files(copy)
    result = resume(data, copy, 5, run=options)
    assert files(copy) == before
    assert message in capsys.readouterr().out
    assert result.seconds == 0
    assert result.best_val_loss == pytest.approx(min(float(row["val_loss"]) for row in rows(copy)))


def test_a_finished_run_that_was_killed_before_it_had_grades_gets_them(data, copy):
    before = files(copy)
    (copy / "grade.safetensors").unlink()
    resume(data, copy, 5, run={"max_epochs": 2})
    assert files(copy) == before


def test_patience_counts_across_sessions(data, tmp_path):
    options = {"optimizer": {"lr": 1e-30, "ema_decay": None}, "run": {"early_stopping": 3}}
    run = go(data, tmp_path / "run", 2, **options).run
    resume(data, run, 50, **options)
    assert len(rows(run)) == 4, "one that is the best, three that are not better"


def test_a_model_is_there_before_it_is_loaded(data, copy):
    """Killed before the first validation: no weights yet, and yet the run goes on."""
    (copy / "model.safetensors").unlink()
    (copy / "metrics.csv").unlink()
    resume(data, copy, 3)
    assert equicat.load(copy).info.task == "s2ef"
