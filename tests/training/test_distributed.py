"""Training on several processes: the same model, the same losses, and one set of files about all data."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from socket import socket

import pytest
import torch
import yaml
from conftest import configuration, labelled
from safetensors.torch import load_file

from equicat import InputError, open_dataset
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.run_directory import LAST, digest, read_checkpoint
from equicat.training.config import RunConfig, from_mapping
from equicat.training.train import train
from equicat.training.trainer import devices_and_nodes


def free_port() -> str:
    with closing(socket()) as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def started_as_by_torchrun(arguments: list[str], program: Sequence[str] = ("-m", "equicat")) -> list[subprocess.Popen]:
    """Start `equicat` in two processes with the environment that torchrun gives them, without its own start-up time."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    command = [sys.executable, *program, *arguments]
    environments = [os.environ | shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in (0, 1)]
    return [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for env in environments
    ]


def ended(processes: list[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    """Outcomes of processes, once they have ended."""
    return [
        subprocess.CompletedProcess(process.args, process.returncode, out, err)
        for process in processes
        for out, err in [process.communicate(timeout=300)]
    ]


def as_torchrun(arguments: list[str]) -> list[subprocess.CompletedProcess]:
    """Run `equicat` in two processes to its end."""
    return ended(started_as_by_torchrun(arguments))


def test_two_processes_do_what_one_does(data, run, tmp_path):
    """Batches of 2 on two processes are a batch of 4 on one: the same weights, in float64, after all their steps.

    Some of the data have no energies, and half of the weight. They write one run, in the place of an old one, which is
    evaluated on all validation data.
    """
    options = {"max_epochs": 2, "dtype": "float64"}
    further = str(tmp_path / "further")
    bare = [dataclasses.replace(labelled(k), energy=None) for k in range(40, 44)]
    write_store(tmp_path / "further", bare, DatasetInfo("total"))
    several = {"also": {further: 1.0}, "also_energy_weight": {further: 0.0}, "also_forces_weight": {further: 0.5}}
    one = configuration(data, tmp_path / "one", several, run={"batch_size": 4} | options)
    shutil.copytree(run, tmp_path / "two")
    two = configuration(data, tmp_path / "two", several, run={"batch_size": 2, "overwrite": True} | options)
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    done = as_torchrun(["train", str(tmp_path / "two.yaml")])
    assert [process.returncode for process in done] == [0, 0], done
    train(from_mapping(one))

    rows = {}
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open() as file:
            rows[name] = [{k: v for k, v in row.items() if k not in ("time_s", "idle")} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows["two"]] == ["0", "1"], "one training, not two"
    for first, second in zip(*rows.values(), strict=True):
        assert {k: float(v) for k, v in second.items()} == pytest.approx({k: float(v) for k, v in first.items()})
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12)

    evaluation = json.loads((tmp_path / "two" / "evaluation.json").read_text())["splits"]["val"]
    validation = open_dataset(data / "s2ef" / "val_id")
    assert evaluation["n_systems"] == len(validation)
    assert evaluation["n_free_atoms"] == (~validation.array("fixed")).sum()
    assert done[0].stdout.count("best validation loss") == 1
    assert done[1].stdout == "", "the main process speaks for all"
    assert not list(tmp_path.glob(".two*"))


@pytest.mark.slow
def test_a_signal_to_one_process_or_to_all_ends_them_at_one_step_and_loses_nothing(data, tmp_path):
    options = {"batch_size": 2, "max_epochs": 60, "val_every": 20, "checkpoint_every": "5 steps"}
    files = {}
    for name in ("whole", "one", "all"):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(configuration(data, tmp_path / name, run=options)))
    assert [process.returncode for process in as_torchrun(["train", str(files["whole"])])] == [0, 0]
    for name, told in {"one": [1], "all": [0, 1]}.items():
        processes, last = started_as_by_torchrun(["train", str(files[name])]), tmp_path / name / LAST
        while not last.is_file():
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.01)
        for rank in told:
            processes[rank].send_signal(signal.SIGTERM)
        done = ended(processes)
        assert [process.returncode for process in done] == [130, 130], done
        assert [process.stderr.count("interrupted; go on with") for process in done] == [1, 0]
        state = read_checkpoint(last)
        assert 5 <= state["global_step"] < 240
        assert state["global_step"] > 4 * state["progress"]["epochs"] or state["batches"] == 0
        resumed = as_torchrun(["train", str(files[name]), "--run.resume", "true"])
        assert [process.returncode for process in resumed] == [0, 0], resumed
        assert f"goes on after {state['progress']['epochs']} epochs" in resumed[0].stdout
        whole, parts = (read_checkpoint(tmp_path / run / LAST) for run in ("whole", name))
        assert whole["global_step"] == parts["global_step"] == 240
        for part in ("state_dict", "optimizer_states"):
            assert digest({part: whole[part]}) == digest({part: parts[part]}), (name, part)


@pytest.mark.slow
def test_processes_measure_how_long_they_wait(data, tmp_path, run):
    """One of two sleeps in each step, so the other waits for about half of that time."""
    values = configuration(data, tmp_path / "two", run={"batch_size": 2, "max_epochs": 2})
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(values))
    sleepy = (
        "import os, sys, time\n"
        "from equicat.cli.main import main\n"
        "from equicat.training.module import TrainingModule\n"
        "step = TrainingModule.training_step\n"
        "def slow(self, *given):\n"
        "    time.sleep(0.3 * int(os.environ['RANK']))\n"
        "    return step(self, *given)\n"
        "TrainingModule.training_step = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = ended(started_as_by_torchrun(["train", str(tmp_path / "two.yaml")], ["-c", sleepy]))
    assert [process.returncode for process in done] == [0, 0], done
    with (tmp_path / "two" / "metrics.csv").open() as file:
        shares = [float(row["idle"]) for row in csv.DictReader(file)]
    assert all(0.2 < share < 0.6 for share in shares), shares
    with (run / "metrics.csv").open() as file:
        assert {float(row["idle"]) for row in csv.DictReader(file)} == {0.0}


# ---- how many processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "devices", "expected"),
    [
        ({}, "auto", ("auto", 1)),
        ({}, 2, (2, 1)),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "auto", (2, 1)),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3"}, "auto", (4, 2)),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3"}, 4, (4, 2)),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2, (2, 1)),
        ({"WORLD_SIZE": "2"}, "auto", ("auto", 1)),
        ({"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "auto", ("auto", 1)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "train"}, "auto", (4, 2)),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, "auto", (1, 1)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_JOB_NAME": "bash"}, "auto", ("auto", 1)),
    ],
)
def test_devices_are_as_many_as_processes_were_started(monkeypatch, environment, devices, expected):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "LOCAL_", "WORLD_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert devices_and_nodes(RunConfig(devices=devices)) == expected


def test_another_number_of_devices_than_processes_is_refused(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"run.devices is 4, but 2 processes were started on this machine"):
        devices_and_nodes(RunConfig(devices=4))
    with pytest.raises(InputError, match=r"run\.devices is two; it must be auto or a whole number of at least 1"):
        from_mapping({"run": {"devices": "two"}})


def test_more_processes_than_a_machine_can_have_are_refused(data, tmp_path):
    values = configuration(data, tmp_path / "run", run={"devices": 100_000})
    with pytest.raises(InputError, match=r"run\.devices is 100000, but this machine has \d+ processors"):
        train(from_mapping(values))
