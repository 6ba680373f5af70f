"""Models of an ensemble that are trained at the same time, each by a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import configuration

import equicat
from equicat.cli.main import main
from equicat.run_directory import LAST, members_of, read_checkpoint
from equicat.training import side_by_side
from equicat.training.config import from_mapping
from equicat.training.side_by_side import environment_of
from equicat.training.train import members, train

OPTIONS = {"members": 2, "max_epochs": 1, "seed": 3, "progress": False}


def command(data, out, **run):
    """The words of a command that trains two models for an epoch."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(configuration(data, out, run=OPTIONS | run)))
    return ["train", str(file)]


def test_they_are_the_models_that_are_trained_one_after_the_other(data, tmp_path, capfd):
    together, alone = tmp_path / "together", tmp_path / "alone"
    assert main(command(data, together, members_at_once=2)) == 0
    shown = capfd.readouterr().out
    places = [shown.index(f"\nrun: {together / name}\n") for name in ("seed_3", "seed_4")]
    assert places == sorted(places)
    assert shown.index("mean of 2 models:") > places[-1]
    assert (together / "evaluation.json").is_file()
    for member in members(from_mapping(configuration(data, alone, run=OPTIONS))):
        train(member)
    for one, other in zip(members_of(together), members_of(alone), strict=True):
        assert one.name == other.name
        assert yaml.safe_load((one / "config.yaml").read_text())["run"]["members_at_once"] == 1
        ours, theirs = (equicat.load(run).state_dict() for run in (one, other))
        for name, weights in ours.items():
            torch.testing.assert_close(weights, theirs[name], rtol=1e-4, atol=1e-5)


def test_no_more_at_once_than_asked_for(data, tmp_path, monkeypatch):
    groups = []
    monkeypatch.setattr(side_by_side, "_train_group", lambda group: groups.append([m.run.seed for m in group]))
    five, two = (members(from_mapping(configuration(data, tmp_path, run={"members": n}))) for n in (5, 2))
    side_by_side.train_side_by_side(five, 2)
    side_by_side.train_side_by_side(two, 3)
    assert groups == [[0, 1], [2, 3], [4], [0, 1]]


def test_one_that_cannot_be_trained_is_named_and_no_other_begins(data, tmp_path, monkeypatch, capfd):
    begun = []

    def the_second_fails(programs, outputs):
        begun.append(programs)
        return [0, 2]

    monkeypatch.setattr(side_by_side, "statuses", the_second_fails)
    assert main(command(data, tmp_path / "three", members=3, members_at_once=2)) == 2
    error = " ".join(capfd.readouterr().err.split())
    assert f"{tmp_path / 'three' / 'seed_4'}: training ended with status 2, as said above" in error
    assert [len(programs) for programs in begun] == [2]


@pytest.mark.slow
def test_runs_that_are_in_the_way_are_named_by_their_own_processes(data, tmp_path, capfd):
    out = tmp_path / "three"
    out.mkdir()
    (out / "seed_4").write_text("in the way")
    (out / "seed_3").write_text("in the way, too")
    assert main(command(data, out, members=3, members_at_once=2)) == 2
    error = " ".join(capfd.readouterr().err.split())
    assert f"{out / 'seed_3'}, {out / 'seed_4'}: training ended with status 2, as said above" in error
    assert not (out / "seed_5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_them_with_what_they_have_and_they_go_on(data, tmp_path, number):
    """A terminal sends an interrupt to the whole group of processes, others send SIGTERM to the one that they know."""
    out = tmp_path / "two"
    words = command(data, out, members_at_once=2, max_epochs=500, checkpoint_every="5 steps")
    process = subprocess.Popen(
        [sys.executable, "-m", "equicat", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    lasts = [out / name / LAST for name in ("seed_3", "seed_4")]
    while not all(last.is_file() for last in lasts):
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.count("interrupted; go on with `--run.resume true`") == 2
    before = [read_checkpoint(last) for last in lasts]
    n_epochs = max(state["progress"]["epochs"] for state in before) + 2
    assert main([*words, "--run.resume", "true", "--run.max_epochs", str(n_epochs)]) == 0
    for last, state in zip(lasts, before, strict=True):
        assert read_checkpoint(last)["global_step"] > state["global_step"] > 0


def test_processes_that_train_one_model_together_are_refused(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(data, tmp_path / "two", members_at_once=2)) == 2
    assert "2 processes were started (torchrun, SLURM)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "two").exists()


def test_each_trains_alone_with_its_share_of_the_machine():
    given = {"RANK": "1", "WORLD_SIZE": "4", "SLURM_NTASKS": "4", "TORCHELASTIC_RUN_ID": "1", "HOME": "h"}
    assert environment_of(0, 1, 0, given | {"OMP_NUM_THREADS": "3"}) == {"HOME": "h", "OMP_NUM_THREADS": "3"}
    assert environment_of(0, 10**6, 0, given)["OMP_NUM_THREADS"] == "1"
    assert [environment_of(k, 3, 2, given)["CUDA_VISIBLE_DEVICES"] for k in range(3)] == ["0", "1", "0"]
    chosen = given | {"CUDA_VISIBLE_DEVICES": "5,7"}
    assert [environment_of(k, 2, 2, chosen)["CUDA_VISIBLE_DEVICES"] for k in range(2)] == ["5", "7"]
    assert environment_of(0, 1, 8, chosen)["CUDA_VISIBLE_DEVICES"] == "5,7"
