"""A search without Weights & Biases: what is drawn and kept, several processes, kills; and the sweep file of both."""

import json
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import configuration
from places import ROOT

from equicat import InputError
from equicat.cli.main import main
from equicat.cli.train import TrainParser
from equicat.options.text import read_yaml
from equicat.studies import search as study
from equicat.studies.space import FOLDER, Range, read_space
from equicat.training.callbacks import RunWriter

needs_optuna = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import optuna"], capture_output=True, check=False).returncode != 0,
    reason="optuna is not installed (extra: search)",
)
SPACE = """
method: {method}
metric: {{name: val_forces_mae, goal: minimize}}
parameters:
  optimizer.lr: {{values: [1e-2, 1e-4]}}
  model.two_body_mlp: {{values: [[8, 16], [4, 16]]}}
"""


def space_file(tmp_path, text: str):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def config(data, tmp_path):
    values = configuration(data, tmp_path / "unused", run={"max_epochs": 1})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@needs_optuna
def test_a_grid_is_searched_once_and_goes_on(config, tmp_path, capsys):
    space, out = space_file(tmp_path, SPACE.format(method="grid")), tmp_path / "found"
    command = ["search", str(config), "--space", str(space), "--out", str(out)]
    assert main([*command, "--trials", "3"]) == 0
    first = json.loads((out / "results.json").read_text())["trials"]
    assert len(first) == 3
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/model.safetensors")}
    assert main([*command, "--trials", "20"]) == 0
    results = json.loads((out / "results.json").read_text())
    tried = {tuple(trial["options"].items()) for trial in results["trials"]}
    assert len(tried) == len(results["trials"]) == 4, "a grid ends when it is complete"
    values = [trial["value"] for trial in results["trials"]]
    assert values == sorted(values)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items()), "nothing is done twice"
    table = capsys.readouterr().out
    assert re.search(r"trial +val_forces_mae +optimizer\.lr +model\.two_body_mlp\n", table)
    assert f"best run: {results['trials'][0]['run']}" in table
    with (out / "trials" / "0000" / "config.yaml").open() as file:
        options = yaml.safe_load(file)
    chosen = next(trial["options"] for trial in results["trials"] if trial["trial"] == 0)
    assert options["optimizer"]["lr"] == float(chosen["optimizer.lr"])
    assert options["model"]["two_body_mlp"] == json.loads(chosen["model.two_body_mlp"])


@needs_optuna
def test_draws_depend_on_the_seed_and_their_number_alone(config, tmp_path):
    text = """
    method: random
    metric: {name: val_loss}
    parameters:
      optimizer.lr: {min: 1e-4, max: 1e-2, distribution: log_uniform_values}
      run.batch_size: {min: 2, max: 8}
      loss.forces_weight: {min: 1.0, max: 10}
    """
    space = space_file(tmp_path, text)
    whole = study.search(str(config), space=str(space), out=str(tmp_path / "whole"), trials=3, seed=1)
    for trials in (1, 3):
        parts = study.search(str(config), space=str(space), out=str(tmp_path / "parts"), trials=trials, seed=1)
    options = [[trial["options"] for trial in found.trials] for found in (whole, parts)]
    assert options[0] == options[1]
    assert len({trial["optimizer.lr"] for trial in options[0]}) == 3
    assert all(1e-4 <= t["optimizer.lr"] <= 1e-2 and t["run.batch_size"] in range(2, 9) for t in options[0])
    config.write_text(config.read_text().replace("max_epochs: 1", "max_epochs: 2"))
    with pytest.raises(InputError, match="holds a search with another configuration"):
        study.search(str(config), space=str(space), out=str(tmp_path / "parts"), trials=4, seed=1)


@needs_optuna
def test_a_trial_that_fails_is_kept_and_the_search_goes_on(config, tmp_path, capsys):
    text = "method: grid\nmetric: {name: val_loss}\nparameters: {model.l_max: {values: [0, 1]}}"
    config.write_text(config.read_text() + "displacement_head: vector\ntask: is2rs\n")
    found = study.search(str(config), space=str(space_file(tmp_path, text)), out=str(tmp_path / "out"))
    assert [trial["state"] for trial in found.trials] == ["complete", "fail"]
    assert "l_max is 0, so there are no vectors" in found.trials[1]["error"]
    assert "trial 0: model.l_max is 0" in capsys.readouterr().err
    assert re.search(r"0 +fail +0$", study.as_text(found))


@needs_optuna
def test_an_interrupted_trial_is_finished_first(config, tmp_path, monkeypatch):
    """The lock of a trial ends with its process, so no other process has to know that it was interrupted."""
    text = yaml.safe_load(config.read_text())
    text["run"]["max_epochs"] = 3
    config.write_text(yaml.safe_dump(text))
    arguments = {"space": str(space_file(tmp_path, SPACE.format(method="random"))), "out": str(tmp_path / "out")}
    keep, trained = RunWriter.on_train_epoch_end, []

    def and_stop(self, trainer, module):
        keep(self, trainer, module)
        trained.append((self.directory.final.name, trainer.current_epoch))
        if len(trained) == 5:
            raise RuntimeError("killed")

    monkeypatch.setattr(RunWriter, "on_train_epoch_end", and_stop)
    with pytest.raises(RuntimeError, match="killed"):
        study.search(str(config), **arguments, trials=3)
    found = study.search(str(config), **arguments, trials=3)
    assert {trial["state"] for trial in found.trials} == {"complete"}
    assert trained == [(f"{k:04d}", epoch) for k in range(3) for epoch in range(3)]


@needs_optuna
@pytest.mark.slow
def test_two_processes_share_a_search_and_a_killed_one_is_finished(config, tmp_path):
    values = yaml.safe_load(config.read_text())
    values["run"]["max_epochs"] = 20
    config.write_text(yaml.safe_dump(values))
    out, space = tmp_path / "out", space_file(tmp_path, SPACE.format(method="bayes"))
    command = [sys.executable, "-m", "equicat", "search", str(config), "--space", str(space), "--out", str(out)]
    workers = [subprocess.Popen([*command, "--trials", "3"], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    deadline = time.monotonic() + 60
    while not list(out.glob("trials/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    workers[0].send_signal(signal.SIGKILL)
    workers[0].communicate()
    workers[1].communicate(timeout=120)
    assert main([*command[3:], "--trials", "3"]) == 0
    trials = json.loads((out / "results.json").read_text())["trials"]
    assert sorted(trial["trial"] for trial in trials) == [0, 1, 2]
    assert {trial["state"] for trial in trials} == {"complete"}
    for trial in trials:
        rows = (tmp_path / "out" / "trials" / f"{trial['trial']:04d}" / "metrics.csv").read_text().splitlines()[1:]
        assert [int(row.split(",")[0]) for row in rows] == list(range(20)), "no epoch is lost or done twice"


@needs_optuna
def test_what_cannot_be_searched_is_said_before_anything_is_written(config, tmp_path):
    for text, message in {
        SPACE.format(method="hyperband"): "method is hyperband; it must be one of grid, random, bayes",
        SPACE.format(method="grid").replace("optimizer.lr", "optimizer.rate"): r"unknown key 'optimizer\.rate'",
        "method: grid\nmetric: {name: a}\nparameters: {optimizer.lr: {min: 1, max: 2}}": "a grid needs values",
        "metric: {name: a}\nparameters: {optimizer.lr: {min: 2, max: 1}}": "min 2 and max 1 are no range",
        "metric: {name: a}\nparameters: {optimizer: {parameters: {lr: {value: 1}}}}": "use dotted names",
        "metric: {name: a}\nparameters: {optimizer.lr: {min: a, max: 1}}": "min is a; it must be a number",
        "metric: val_loss\nparameters: {optimizer.lr: {value: 1}}": "metric must be a name and a goal",
        "metric: {name: a}": "parameters must name options",
    }.items():
        with pytest.raises(InputError, match=message):
            study.search(str(config), space=str(space_file(tmp_path, text)), out=str(tmp_path / "out"))
    with pytest.raises(InputError, match="did you mean 'allegro_s2ef'"):
        study.search(str(config), space="alegro_s2ef", out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    text = SPACE.format(method="grid").replace("val_forces_mae", "val_nothing")
    with pytest.raises(InputError, match=r"no trial has finished; the last one: .*no metric val_nothing; there are"):
        study.search(str(config), space=str(space_file(tmp_path, text)), out=str(tmp_path / "out"), trials=1)


# ---- the sweep file of the paper -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_sweep_files_start_trainings_that_parse(path):
    """The words that an agent of Weights & Biases would start, with every value."""
    space, sweep = read_space(path.stem), yaml.safe_load(path.read_text())
    shell, flag, line, name, macro = sweep["command"]
    assert (shell, flag, name, macro) == ("sh", "-c", "sh", "${args}")
    shown = "printf '%s\\n' " + re.sub(r"^exec env WANDB_MODE=online equicat train ", "", line)
    assert shown != line
    for k in range(int(space.size)):
        args = [f"--{option}={value}" for option, value in space.grid_point(k).items()]
        environment = {"WANDB_RUN_ID": "abc123", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            [shell, flag, shown, name, *args], capture_output=True, text=True, env=environment, check=True
        )
        parser = TrainParser()
        options = parser.instantiate(parser.parse_args(done.stdout.splitlines())).as_dict()
        assert options["run"].out == "runs/sweep/abc123"
        assert options["run"].wandb
        assert options["optimizer"].lr == float(space.grid_point(k)["optimizer.lr"])
        assert options["loss"].forces_weight == float(space.grid_point(k)["loss.forces_weight"])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_commands_in_sweep_files_parse(path, monkeypatch):
    from equicat.cli import main as cli

    runs = []
    monkeypatch.setattr(cli, "chosen", lambda parser, options: (lambda: runs.append(options), {}))
    (command,) = re.findall(r"^# +equicat (search .*?)  ", path.read_text() + "  ", flags=re.MULTILINE)
    assert main(shlex.split(command)) == 0
    assert len(runs) == 1
    (sweep,) = re.findall(r"^# +wandb sweep --project equicat (\S+)", path.read_text(), flags=re.MULTILINE)
    assert ROOT / sweep == path


def test_spaces_are_read_as_weights_and_biases_means_them(tmp_path):
    space = read_space(
        str(
            space_file(
                tmp_path,
                "metric: {name: a, goal: maximize}\nparameters:\n  a: {min: 1, max: 3}\n"
                "  b: {min: 1, max: 3.5}\n  c: {value: x}\n  d: {values: [1, null, true]}",
            )
        )
    )
    assert space.maximize
    assert space.method == "random"
    assert space.options["a"] == Range(1.0, 3.0, "int_uniform")
    assert space.options["b"] == Range(1.0, 3.5, "uniform")
    assert (space.options["c"], space.options["d"]) == (("x",), ("1", "null", "true"))
    assert read_yaml(FOLDER / "allegro_s2ef.yaml")["method"] == "grid"
