"""Runs that end anywhere go on where they were: in the middle of an epoch, with the same bits as if undisturbed."""

import csv
import math
import os
import resource
import shutil
import signal

import pytest
from conftest import configuration
from safetensors.torch import load_file

import equicat
from equicat import InputError
from equicat.run_directory import digest, read_checkpoint
from equicat.training.callbacks import RunWriter
from equicat.training.config import from_mapping
from equicat.training.module import TrainingModule
from equicat.training.rhythm import Rhythm, is_due
from equicat.training.train import train

OFTEN = {"checkpoint_every": "2 steps", "batch_size": 2, "dtype": "float64", "max_epochs": 3}
"""Eight steps an epoch, a checkpoint after every second one."""


def rows(run) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    return [{name: cell for name, cell in row.items() if name != "time_s"} for row in found]


def go(data, out, optimizer=None, **run):
    return train(from_mapping(configuration(data, out, run=OFTEN | run, optimizer=optimizer or {}))).run


def killed(data, out, step, optimizer=None, **run):
    """A run that is killed after so many steps, before anything of the last one is written."""
    usual = Rhythm.on_train_batch_end

    def until(self, trainer, module, *args):
        if trainer.global_step == step:
            raise RuntimeError("killed")
        usual(self, trainer, module, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rhythm, "on_train_batch_end", until)
        with pytest.raises(RuntimeError, match="killed"):
            go(data, out, optimizer, **run)


def last(run) -> dict:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def end(run) -> dict:
    """Rows, weights, averages and the state of the optimiser, by whose bits two runs are compared."""
    parts = ("state_dict", "current_model_state", "optimizer_states", "global_step", "batches")
    state, weights = last(run), digest(load_file(run / "model.safetensors"))
    return {"rows": rows(run), "weights": weights} | {part: digest(state.get(part)) for part in parts}


@pytest.mark.parametrize(
    ("optimizer", "run"),
    [
        ({"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.5, "lr": 0.3}, {}),
        ({"schedule": "cosine", "warmup_steps": 6}, {"val_every": "5 steps", "log_every": "3 steps"}),
        pytest.param(
            {"name": "muon", "schedule": "cosine", "ema_decay": None}, {"accumulate": 3}, marks=pytest.mark.slow
        ),
    ],
    ids=["plateau", "steps", "accumulate"],
)
def test_a_run_that_is_killed_anywhere_ends_with_the_same_bits(data, tmp_path, optimizer, run):
    whole = go(data, tmp_path / "whole", optimizer, **run)
    killed(data, tmp_path / "parts", 4, optimizer, **run)
    for step in (7, 9) if "accumulate" in run else (7, 11, 18):
        killed(data, tmp_path / "parts", step, optimizer, resume=True, **run)
    assert end(whole) == end(go(data, tmp_path / "parts", optimizer, resume=True, **run))


def test_rows_validations_and_checkpoints_come_every_so_many_steps(data, tmp_path, capsys):
    run = go(data, tmp_path / "run", val_every="5 steps", log_every="3 steps", max_epochs=2)
    found = rows(run)
    assert [int(row["step"]) for row in found] == [3, 5, 6, 8, 9, 10, 12, 15, 16]
    assert [int(row["step"]) for row in found if row["val_loss"]] == [5, 10, 15, 16], "and the end of the run"
    killed(data, tmp_path / "cut", 6, val_every="5 steps", max_epochs=2)
    state = last(tmp_path / "cut")
    assert (state["global_step"], state["batches"], state["progress"]["epochs"]) == (5, 5, 0)
    assert equicat.load(tmp_path / "cut").info.task == "s2ef", "a model within the first epoch"
    go(data, tmp_path / "cut", val_every="5 steps", max_epochs=2, resume=True)
    assert "goes on after 0 epochs and 5 batches" in capsys.readouterr().out


def test_a_long_training_row_is_the_mean_of_all_its_batches(data, tmp_path):
    """Sums since the last row are in the checkpoint."""
    frozen = {"lr": 1e-30, "ema_decay": None}
    killed(data, tmp_path / "run", 7, frozen, max_epochs=1)
    (row,) = rows(go(data, tmp_path / "run", frozen, max_epochs=1, resume=True))
    (whole,) = rows(go(data, tmp_path / "whole", frozen, max_epochs=1))
    assert row == whole


def test_with_other_batches_the_epoch_begins_anew(data, tmp_path):
    killed(data, tmp_path / "run", 7, max_epochs=2)
    run = go(data, tmp_path / "run", max_epochs=2, resume=True, batch_size=4)
    assert [int(row["step"]) for row in rows(run)] == [6 + 4, 6 + 4 + 4]


def test_a_run_whose_time_ends_within_an_epoch_evaluates_and_goes_on_there(data, tmp_path, monkeypatch):
    """A cosine by time is one curve over both sessions; the clock is that of steps, so that the test is exact."""
    monkeypatch.setattr("equicat.training.module.time.monotonic", lambda: 0.0)
    monkeypatch.setattr("equicat.training.module.TrainingModule.seconds", lambda self: 60.0 * self.trainer.global_step)
    cosine = {"schedule": "cosine"}
    run = go(data, tmp_path / "run", cosine, max_epochs=99, max_minutes=10.0)
    (first, second) = rows(run)
    assert (first["step"], second["step"], second["epoch"]) == ("8", "12", "1")
    assert second["val_loss"]
    assert (last(run)["batches"], last(run)["progress"]["epochs"]) == (4, 1)
    rates = [float(row["lr"]) for row in rows(go(data, run, cosine, max_epochs=99, max_minutes=20.0, resume=True))]
    whole = rows(go(data, tmp_path / "whole", cosine, max_epochs=99, max_minutes=20.0))
    assert [row["step"] for row in whole] == ["8", "16", "22"]
    assert rates[2:] == [float(row["lr"]) for row in whole[1:]]


def test_a_run_of_so_many_steps_is_shorter_than_its_epoch(data, tmp_path, capsys):
    cosine = {"schedule": "cosine", "ema_decay": None}
    run = go(data, tmp_path / "run", cosine, max_epochs=1, max_steps=5)
    (row,) = rows(run)
    assert row["step"] == "5"
    assert float(row["lr"]) == pytest.approx(0.01 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 4 / 5))), rel=1e-5)
    go(data, run, cosine, max_epochs=1, max_steps=5, resume=True)
    assert "all 5 steps are done; raise run.max_steps" in capsys.readouterr().out
    go(data, run, cosine, max_epochs=1, max_steps=None, resume=True)
    assert [row["step"] for row in rows(run)] == ["5", "8"]


def test_a_signal_to_end_leaves_a_checkpoint_of_that_step(data, tmp_path):
    usual = RunWriter.on_train_start

    def terminate(self, trainer, module):
        usual(self, trainer, module)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "on_train_start", terminate)
        with pytest.raises(KeyboardInterrupt):
            go(data, tmp_path / "run", checkpoint_every="9 minutes")
    assert last(tmp_path / "run")["global_step"] == 1
    assert end(go(data, tmp_path / "run", resume=True)) == end(go(data, tmp_path / "whole"))


@pytest.mark.parametrize("val_every", ["3 steps", 1])
def test_a_signal_to_end_during_a_validation_leaves_a_checkpoint_with_it(data, tmp_path, val_every):
    """The first of three batches of the validation gets the signal: within an epoch, and at the end of one."""
    usual, told = TrainingModule.validation_step, []

    def terminate(self, *args):
        if not told:
            told.append(self.global_step)
            os.kill(os.getpid(), signal.SIGTERM)
        usual(self, *args)

    options = {"val_every": val_every, "val_batch_size": 2, "checkpoint_every": "9 minutes"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "validation_step", terminate)
        with pytest.raises(KeyboardInterrupt):
            go(data, tmp_path / "run", **options)
    assert last(tmp_path / "run")["global_step"] == told[0] == (3 if val_every == "3 steps" else 8)
    assert [row["val_loss"] != "" for row in rows(tmp_path / "run")] == [True]
    resumed = go(data, tmp_path / "run", resume=True, **options)
    assert end(resumed) == end(go(data, tmp_path / "whole", **options))


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(data, tmp_path):
    """Files can grow to no more than a few bytes from the third checkpoint on."""
    usual, limits = RunWriter.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, trainer):
        if trainer.global_step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        usual(self, trainer)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RunWriter, "save", full)
            with pytest.raises(InputError, match=r"last.ckpt: the disk is full") as error:
                go(data, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert last(tmp_path / "run")["global_step"] == 4
    assert end(go(data, tmp_path / "run", resume=True)) == end(go(data, tmp_path / "whole"))


def test_a_kill_between_the_names_of_two_checkpoints_loses_nothing(data, tmp_path):
    killed(data, tmp_path / "run", 7)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").rename(tmp_path / "run" / "checkpoints" / "previous.ckpt")
    assert end(go(data, tmp_path / "run", resume=True)) == end(go(data, tmp_path / "whole"))


def test_noise_goes_on_with_the_same_random_numbers(data, tmp_path):
    options = configuration(data, tmp_path / "whole", run=OFTEN | {"max_epochs": 2}, noise={"share": 0.5, "sigma": 0.1})
    options["task"] = "is2re"
    whole = train(from_mapping(options)).run
    shutil.copytree(whole, tmp_path / "parts")
    shutil.copy(tmp_path / "parts" / "checkpoints" / "previous.ckpt", tmp_path / "parts" / "checkpoints" / "last.ckpt")
    options["run"] |= {"out": str(tmp_path / "parts"), "resume": True}
    assert last(tmp_path / "parts")["batches"] == 6
    assert end(whole) == end(train(from_mapping(options)).run)


@pytest.mark.parametrize(
    ("every", "before", "now", "due"),
    [
        ("5 steps", (4, 0.0), (5, 0.0), True),
        ("5 steps", (5, 0.0), (6, 0.0), False),
        ("0.5 minutes", (0, 29.0), (1, 31.0), True),
        ("1 minute", (0, 61.0), (1, 119.0), False),
        (None, (0, 0.0), (9, 9e9), False),
    ],
)
def test_intervals(every, before, now, due):
    assert is_due(every, before, now) == due


@pytest.mark.parametrize("text", ["0 steps", "often", "5 epochs", "0 minutes", "1.5 steps"])
def test_other_intervals_are_refused(data, tmp_path, text):
    with pytest.raises(InputError, match=r"run.checkpoint_every is .*; it must be text such as 500 steps or 10 min"):
        from_mapping(configuration(data, tmp_path, run={"checkpoint_every": text}))
