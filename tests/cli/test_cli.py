"""Commands as users type them: what they print, what they write, and one clear line for bad input."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from ase.io import read as ase_read
from conftest import command_names, labelled

import equicat
from equicat import InputError, Structure
from equicat.cli import main as cli
from equicat.cli.main import COMMANDS, main
from equicat.data.datasets import open_dataset
from equicat.data.info import DatasetInfo
from equicat.data.readers import read, write
from equicat.data.store import write_store
from equicat.errors import Remark
from equicat.networks.catalogue import NETWORKS
from equicat.options.text import read_yaml
from equicat.sources.emt.make import EMTConfig
from equicat.tasks.leaderboard import LEADERBOARD_SPLITS
from equicat.tasks.tasks import outputs_of, resolved, task_of
from equicat.training.config import from_mapping
from equicat.training.presets import find_configuration, presets

COMMAND_NAMES = list(command_names(COMMANDS))


def succeed(capsys, *arguments) -> str:
    status = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def fail(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, "one line"
    assert captured.err.startswith("equicat: ")
    return captured.err


def yaml_file(tmp_path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_usage_names_every_command(capsys):
    out = succeed(capsys)
    assert out == succeed(capsys, "--help")
    assert all(word in out for word in " ".join(COMMAND_NAMES).split())
    assert succeed(capsys, "--version") == f"{equicat.__version__}\n"


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_every_command_has_help(capsys, name):
    out = succeed(capsys, *name.split(), "--help")
    assert "usage: equicat " + name in out
    assert "class '" not in out
    assert "Literal" not in out


@pytest.mark.parametrize("group", [name for name, command in COMMANDS.items() if isinstance(command, dict)])
def test_groups_of_commands_have_help(capsys, group):
    out = succeed(capsys, group, "--help")
    assert all(name in out for name in COMMANDS[group])
    assert all(name in fail(capsys, group) for name in COMMANDS[group])
    assert "no command 'nothing'; commands: " in fail(capsys, group, "nothing")


def test_train_help_describes_options_with_units(capsys):
    out = " ".join(succeed(capsys, "train", "--help").split())
    assert "Highest degree of the spherical harmonics" in out
    assert "Distance (Å)" in out
    assert "(a whole number of at least 1 and at most 100; default: 3)" in out


def test_train_help_names_networks_and_built_in_configurations(capsys):
    out = " ".join(succeed(capsys, "train", "--help").split())
    assert f"model.name may be one of {', '.join(NETWORKS)}" in out
    assert all(name in out for name in presets())
    out = succeed(capsys, "train", "--model.name", "schnet", "--help")
    assert "--model.n_filters" in out
    assert "--model.l_max" not in out
    assert "--model.n_filters" in succeed(capsys, "train", "small/schnet", "--help"), "the configuration names it"


def test_evaluate_prints_baselines_and_the_energy_reference(capsys, run, data, tmp_path):
    out = succeed(capsys, "evaluate", run, "--data", data, "--json", tmp_path / "e.json", "--progress", "false")
    for text in ("val_id: 6 systems", "val_ood_ads", "allegro", "mean energy, F = 0", "linear reference, F = 0"):
        assert text in out
    assert "Energies: adsorption." in out
    assert "train:" not in out
    saved = json.loads((tmp_path / "e.json").read_text())
    folder = run / "evaluations" / data.name
    assert saved == json.loads((folder / "metrics.json").read_text()) | {"written": [str(folder / "metrics.json")]}
    assert f"written: {folder / 'metrics.json'}" in out
    row = saved["splits"]["val_id"]["rows"]
    val = open_dataset(data / "s2ef" / "val_id")
    free = ~val.array("fixed")
    assert row["mean energy, F = 0"]["forces_mae"] == pytest.approx(np.abs(val.array("forces")[free]).mean(), rel=1e-5)
    mean = open_dataset(data / "s2ef" / "train").array("energy").mean()
    assert row["mean energy, F = 0"]["energy_mae"] == pytest.approx(np.abs(val.array("energy") - mean).mean())
    with np.load(folder / "predictions" / "val_id.npz") as parity:
        assert parity["forces_pred"].shape == (saved["splits"]["val_id"]["n_free_atoms"], 3)
        error = np.abs(parity["energy_pred"] - parity["energy_true"]).mean()
    assert row["allegro"]["energy_mae"] == pytest.approx(error)


def test_evaluate_without_data_takes_the_validation_data_of_the_run(capsys, run):
    out = succeed(capsys, "evaluate", run, "--progress", "false")
    assert "val: 6 systems" in out
    assert "they also chose the checkpoint; 0 of 6 systems were trained on" in out
    assert f"written: {run / 'evaluation.json'}" in out


def test_metrics_do_not_depend_on_the_batch_size(capsys, run, data):
    results = []
    for size in (1, 4):
        succeed(capsys, "evaluate", run, "--data", data, "--batch_size", size, "--progress", "false")
        results.append(json.loads((run / "evaluations" / data.name / "metrics.json").read_text())["splits"])
    for split in results[0]:
        a, b = (r[split]["rows"]["allegro"] for r in results)
        assert a == pytest.approx(b, rel=1e-4)


def test_predict_writes_extxyz_that_ase_reads(capsys, run, tmp_path):
    write(tmp_path / "in.extxyz", [labelled(30), labelled(31)])
    succeed(capsys, "predict", run, tmp_path / "in.extxyz", "--out", tmp_path / "out.extxyz.gz", "--progress", "false")
    frames = list(read(tmp_path / "out.extxyz.gz"))
    assert [f.sid for f in frames] == ["s30", "s31"]
    atoms = labelled(30).to_ase()
    atoms.calc = equicat.Calculator(run)
    assert frames[0].energy == pytest.approx(atoms.get_potential_energy(), rel=1e-5)
    np.testing.assert_allclose(frames[0].forces, atoms.get_forces(apply_constraint=False), atol=1e-4)
    assert frames[0].info["energy_reference"] == "adsorption"
    assert len(ase_read(tmp_path / "out.extxyz.gz", index=":")) == 2


def test_predict_writes_the_leaderboard_file(capsys, run, tmp_path):
    frames = [Structure(**{**vars(labelled(k)), "sid": "7", "fid": k}) for k in (13, 5)]
    write(tmp_path / "in.extxyz", frames)
    succeed(capsys, "predict", run, tmp_path / "in.extxyz", "--out", tmp_path / "s.npz", "--progress", "false")
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["ids"].tolist() == ["7_13", "7_5"], "string order"
        assert arrays["energy"].dtype == arrays["forces"].dtype == np.float16
        free = [int((~f.fixed).sum()) for f in frames]
        assert len(arrays["forces"]) == sum(free)
        assert arrays["chunk_idx"].tolist() == [free[0]]


def test_predict_writes_a_submission_of_four_splits(capsys, run, tmp_path):
    for k, split in enumerate(LEADERBOARD_SPLITS):
        frames = [Structure(**{**vars(labelled(k)), "sid": str(k), "fid": fid}) for fid in range(k + 1)]
        write_store(tmp_path / "data" / "s2ef" / f"val_{split}", frames, DatasetInfo("adsorption"))
    arguments = ("predict", run, tmp_path / "data", "--submission", "val", "--progress", "false")
    printed = succeed(capsys, *arguments, "--forces_of", "all", "--out", tmp_path / "all.npz")
    assert "10 structures" in printed
    described = succeed(capsys, "data", "info", tmp_path / "all.npz")
    for k, split in enumerate(LEADERBOARD_SPLITS):
        n_forces = (k + 1) * len(labelled(k))
        assert f"{split}: S2EF, {k + 1} structures, forces of {n_forces} atoms, float16" in described
    error = fail(capsys, *arguments, "--submission", "test", "--out", tmp_path / "test.npz")
    assert "no split test_id, test_ood_ads, test_ood_cat, test_ood_both, which a submission needs" in error
    assert "a submission is an .npz file" in fail(capsys, *arguments, "--out", tmp_path / "x.extxyz")


def test_structures_outside_of_the_training_data_get_one_line(capsys, run, tmp_path):
    pushed = labelled(30)
    pushed.positions[-1] = pushed.positions[0] + [0.0, 0.0, 0.4]
    write(tmp_path / "in.extxyz", [pushed, labelled(31)])
    arguments = ("predict", run, tmp_path / "in.extxyz", "--out", tmp_path / "out.extxyz", "--progress", "false")
    assert main([str(a) for a in arguments]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("equicat: warning: outside of the training data: ")
    assert "Å, shortest in training" in line
    assert "outside of the training data" in fail(capsys, *arguments, "--outside_training", "error")
    assert main([str(a) for a in (*arguments, "--outside_training", "ignore")]) == 0
    assert capsys.readouterr().err == ""


def test_a_remark_is_printed_once(monkeypatch, capsys):
    def report(**options):
        for text in ("first", "second", "first"):
            warnings.warn(text, Remark, stacklevel=1)

    monkeypatch.setattr(cli, "chosen", lambda parser, options: (report, {}))
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().err.splitlines() == ["equicat: warning: first", "equicat: warning: second"]


def test_calculator_agrees_with_finite_differences(run):
    atoms = labelled(40).to_ase()
    atoms.set_constraint()
    atoms.calc = equicat.Calculator(run)
    atoms.calc.potential.double()
    forces = atoms.get_forces()
    step = 1e-4
    for sign in (1, -1):
        atoms.positions[4, 1] += sign * step
        energy = atoms.get_potential_energy()
        forces[4, 1] += sign * energy / (2 * step)
        atoms.positions[4, 1] -= sign * step
    assert forces[4, 1] == pytest.approx(0, abs=1e-5)


def test_calculator_stress_of_a_periodic_cell(run):
    atoms = labelled(40).to_ase()
    atoms.pbc = True
    atoms.calc = equicat.Calculator(run)
    atoms.calc.potential.double()
    stress = atoms.get_stress(voigt=False)
    volume, step = atoms.get_volume(), 1e-4
    energies = []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.calc = atoms.calc
        strained.set_cell(atoms.cell[:] @ (np.eye(3) + sign * step * np.diag([1, 0, 0])), scale_atoms=True)
        energies.append(strained.get_potential_energy())
    assert stress[0, 0] == pytest.approx((energies[0] - energies[1]) / (2 * step) / volume, rel=1e-3)
    assert atoms.calc.energy_reference == "adsorption"


def test_demo_from_end_to_end(capsys, tmp_path):
    from equicat.studies.demo import demo

    data = EMTConfig(n_systems=10, seed=1, fmax=0.1, metals=("Cu", "Pd"), adsorbates=("H", "O", "O2"), workers=1)
    tiny = {"model": {"two_body_mlp": [16, 16], "latent_mlp": [16]}, "run": {"max_epochs": 4, "progress": False}}
    reports = demo(tmp_path / "demo", data=data, overrides=tiny)
    out = capsys.readouterr().out
    for split in ("val_id", "val_ood_ads", "val_ood_cat", "val_ood_both"):
        assert f"{split}:" in out
    assert "mean energy, no displacement" in out
    html = reports.s2ef.read_text()
    assert "<svg" in html
    assert "val_ood_both" in html
    assert "Relaxed structures" in html
    assert html.count(">allegro, relaxed<") == html.count(">allegro, direct<") == 4
    assert html.count("s a system on average") == 4
    html = reports.direct.read_text()
    assert html.count("structure from the side, with displacements") == 4  # one system in each validation split
    assert "displacements parity, val_ood_ads" in html
    assert equicat.load(tmp_path / "demo" / "run").info.energy_reference == "adsorption"


# ---- values of options -------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(capsys, monkeypatch):
    """The arguments that a command would get."""

    def parse(*arguments) -> dict:
        found = []
        monkeypatch.setattr(cli, "chosen", lambda parser, options: (lambda: found.append(options), {}))
        succeed(capsys, *arguments)
        (options,) = found
        while "subcommand" in options:
            options = options[options.subcommand]
        return options.as_dict()

    return parse


def test_text_stays_text_and_one_value_is_a_list_of_one(parsed, tmp_path):
    found = parsed("data", "import", "out", "a.traj", "b.traj", "--split.held_out_adsorbates", "[CO,NO]")
    assert (found["files"], found["split"].held_out_adsorbates) == (["a.traj", "b.traj"], ("CO", "NO"))
    assert parsed("data", "import", "out", "a.traj", "--split.held_out_adsorbates", "NO")["split"].held_out_adsorbates
    found = parsed("train", "small", "--data.train", "a.xyz", "--data.train_where", "{split: no}")
    assert found["data"].train == ("a.xyz",)
    assert found["data"].train_where == {"split": "no"}
    path = yaml_file(tmp_path, "data: {train: a.xyz}\nnormalization: {references: {N: -1, No: -2, Y: 1e1}}")
    found = parsed("train", path)
    assert found["data"].train == ("a.xyz",)
    assert found["normalization"].references == {"N": -1.0, "No": -2.0, "Y": 10.0}


def test_data_is_short_for_training_and_validation_data(parsed, data, tmp_path):
    assert parsed("train", "small", "--data", data)["data"].val == (str(data),)
    assert parsed("train", "small", "--data", data / "s2ef" / "train")["data"].val == (), "a store: a tenth is drawn"
    found = parsed("train", yaml_file(tmp_path, "data: a.xyz"), "--data.n_val", "5")["data"]
    assert (found.train, found.val, found.n_val) == (("a.xyz",), (), 5)


def test_options_can_stand_without_true(parsed):
    assert parsed("data", "info", "x", "--verify")["verify"] is True
    assert parsed("train", "small", "--run.resume", "--data", "x")["run"].resume is True
    assert parsed("data", "oc20", "out", "--from", "disk", "--strict")["from_"] == "disk"


def test_a_printed_configuration_is_the_same_as_a_file(capsys, tmp_path):
    text = succeed(capsys, "train", "small/schnet", "--run.max_minutes", "7", "--print_config")
    path = yaml_file(tmp_path, text)
    assert succeed(capsys, "train", path, "--print_config") == text
    config = from_mapping(read_yaml(path))
    assert (config.model.name, config.run.max_minutes) == ("schnet", 7.0)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model.two_body_mlp", "[8]", "model.two_body_mlp is [8]; it must be a list of whole numbers"),
        ("--data.n_val", "0", "data.n_val is 0; it must be a whole number of at least 1, or null"),
        ("--run.seed", "-1", "run.seed is -1; it must be a whole number of at least 0"),
        ("--run.devices", "x", "run.devices is x; it must be auto or a whole number of at least 1"),
        ("--optimizer.ema_decay", "2", "optimizer.ema_decay is 2; it must be a number of at least 0 and below 1"),
        ("--optimizer.lr", "nan", "optimizer.lr is nan; it must be a number above 0"),
        ("--loss.forces_weight", "-1e-3", "loss.forces_weight is -1e-3; it must be a number of at least 0"),
        ("--normalization.scale", "0", "normalization.scale is 0; it must be fit or a number above 0, or null"),
        ("--task", "dance", "task is dance; it must be one of s2ef, is2re, is2rs"),
        ("--optimizer.schedule", "milestones", "optimizer.milestones is empty"),
        ("--optimizer.schedule", "plateau", "optimizer.warmup_steps is 20, but the schedule plateau has no warm-up"),
        ("--optimizer.amsgrad", "true", "optimizer.amsgrad is for optimizer.name adam, but that is muon"),
        ("--noise.sigma", "0.1", "noise.sigma is 0.1, but noise.share is 0"),
        ("--data.val_where", "{split: val}", "data.val_where selects frames of the files in data.val, which is empty"),
    ],
)
def test_training_options_that_make_no_sense(capsys, option, value, message):
    assert message in fail(capsys, "train", "small", "--data.train", "a.xyz", option, value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate RUN --batch_size 0", "batch_size is 0; it must be a whole number of at least 1"),
        ("predict RUN a.xyz --out o.xyz --device gpu", "device is gpu; it must be auto, cpu, cuda or cuda:N"),
        ("predict RUN a.xyz", "equicat: predict: give --out"),
        ("predict", "equicat: predict: give RUN, STRUCTURES, --out"),
        ("data", "equicat: data: name a command: emt, import"),
        ("predict RUN a.xyz --out o.xyz --devise cpu", "unknown option --devise; the nearest is --device"),
        ("data emt out --n_systems 3", "n_systems is 3; it must be a whole number of at least 10"),
        ("data emt out --metals Xx", "unknown metal 'Xx'"),
        ("data import out a --rules.fmax 0", "rules.fmax is 0; it must be a number above 0"),
        ("data import out a --rules.dissociate drop", "the nearest is --rules.dissociated"),
        ("data oc20 out --workers 0", "workers is 0; it must be a whole number of at least 1"),
        ("data subset a b --size 5 --seed -1", "seed is -1; it must be a whole number of at least 0"),
        ("bench speed --sizes huge", "sizes is huge; it must be a list of one of small, paper"),
        ("relax RUN a.xyz --out o.xyz --fmax 0", "fmax is 0; it must be a number above 0"),
        ("vibrations RUN a.xyz --out g.csv --nfree 3", "nfree is 3; it must be 2 or 4"),
        ("vibrations RUN a.xyz", "equicat: vibrations: give --out"),
        ("tran small", "no command 'tran' (did you mean 'train'?); commands: demo, train"),
        ("train smal", "no built-in one of that name (did you mean 'small'?)"),
    ],
)
def test_options_of_other_commands_that_make_no_sense(capsys, words, message):
    assert message in fail(capsys, *words.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys, run, data):
    assert "device is cuda, but PyTorch can use 0 GPUs here" in fail(capsys, "evaluate", run, "--device", "cuda")
    message = fail(capsys, "train", "small", "--data", data, "--run.accelerator", "gpu")
    assert "run.accelerator is gpu, but PyTorch can use no GPU here; take cpu, or auto" in message
    with pytest.raises(InputError, match="device is cuda:1"):
        equicat.Calculator(run, device="cuda:1")
    assert equicat.Calculator(run).potential.scale.device.type == "cpu"


def test_paths_that_cannot_be_used_are_one_line(capsys, run, data, tmp_path):
    (tmp_path / "file").write_text("")
    there = tmp_path / "file" / "out"
    assert "file" in fail(capsys, "train", "small", "--data", data, "--run.out", tmp_path / "file")
    assert "file" in fail(capsys, "train", "small", "--data", data, "--run.out", there)
    assert "file" in fail(capsys, "train", "small", "--data", data, "--data.train", tmp_path)


# ---- bad input ---------------------------------------------------------------------------------------------------


def test_missing_files(capsys, run, tmp_path):
    assert "nowhere.yaml: cannot read the configuration" in fail(capsys, "train", tmp_path / "nowhere.yaml")
    assert "no such run directory" in fail(capsys, "evaluate", tmp_path / "nowhere", "--data", run)
    assert "no such file" in fail(capsys, "predict", run, tmp_path / "nowhere.xyz", "--out", tmp_path / "o.xyz")
    assert "name a configuration" in fail(capsys, "train")


def test_unknown_keys_name_the_nearest(capsys, tmp_path):
    path = yaml_file(tmp_path, "model: {lmax: 2}")
    assert "unknown key 'model.lmax'; the nearest is model.l_max" in fail(capsys, "train", path)
    path = yaml_file(tmp_path, "modl: {l_max: 2}")
    assert "unknown key 'modl'; the nearest is model" in fail(capsys, "train", path)
    path = yaml_file(tmp_path, "task: s2ef")
    assert "the nearest is --run.max_epochs" in fail(capsys, "train", path, "--run.max_epoch", "3")
    assert "the nearest is --run.max_epochs" in fail(capsys, "train", path, "--max_epochs", "3")


def test_values_of_the_wrong_type(capsys, tmp_path):
    path = yaml_file(tmp_path, "run: {max_epochs: many}")
    message = fail(capsys, "train", path)
    assert "max_epochs" in message
    assert "many" in message
    assert "not valid YAML" in fail(capsys, "train", yaml_file(tmp_path, "a: [1"))
    assert "mapping" in fail(capsys, "train", yaml_file(tmp_path, "[1, 2]"))


def test_run_without_weights(capsys, run, data, tmp_path):
    empty = tmp_path / "run"
    empty.mkdir()
    assert "has no model.json" in fail(capsys, "evaluate", empty, "--data", data)
    (empty / "model.json").write_text((run / "model.json").read_text())
    assert "has no model.safetensors" in fail(capsys, "evaluate", empty, "--data", data)
    (empty / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:100])
    assert "does not fit model.json" in fail(capsys, "evaluate", empty, "--data", data)


def test_another_energy_reference(capsys, run, tmp_path):
    write(tmp_path / "a.extxyz", [labelled(0)])
    arguments = ("evaluate", run, "--data", tmp_path / "a.extxyz", "--progress", "false")
    assert "'total', the model predicts 'adsorption'" in fail(capsys, *arguments, "--energy_reference", "total")
    message = fail(capsys, *arguments)
    assert "its energies are 'total' (a file's are, unless --energy_reference says otherwise)" in message
    assert "if they are adsorption ones, say --energy_reference adsorption" in message
    assert "Energies: adsorption." in succeed(capsys, *arguments, "--energy_reference", "adsorption")


def frame(**changes) -> str:
    values = {"energy": "1.0", "symbol": "Cu", "x": "2.0", "lattice": "9 0 0 0 9 0 0 0 9", "pbc": "T T T"} | changes
    header = f'Lattice="{values["lattice"]}" Properties=species:S:1:pos:R:3:forces:R:3 pbc="{values["pbc"]}"'
    atoms = f"O 0 0 0 0 0 0\n{values['symbol']} {values['x']} 0 0 0 0 0\n"
    return f"2\n{header} energy={values['energy']}\n{atoms}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lattice": "9 0 0 0 9 0 0 0 0"}, "a.extxyz, frame 1: periodic along .* span no volume"),
        ({"symbol": "Au"}, "element Au was not in the training data; this model knows O, Cu"),
        ({"x": "0.0001"}, "a.extxyz, frame 1: atoms 0 and 1 are 0.0001 Å apart, at the same place"),
    ],
    ids=["volume", "element", "coincident"],
)
def test_bad_structures(capsys, run, tmp_path, changes, message):
    (tmp_path / "a.extxyz").write_text(frame() + frame(**changes))
    arguments = ("predict", run, tmp_path / "a.extxyz", "--out", tmp_path / "out.extxyz", "--progress", "false")
    error = fail(capsys, *arguments)
    assert re.search(message, error), error
    assert not (tmp_path / "out.extxyz").exists(), "nothing half-written"
    assert [p.name for p in tmp_path.iterdir()] == ["a.extxyz"]


@pytest.mark.parametrize("energy", ["nan", "none", "T", "-3,0"])
def test_bad_labels(capsys, run, tmp_path, energy):
    file = tmp_path / "a.extxyz"
    file.write_text(frame() + frame(energy=energy))
    for command in (("evaluate", run, "--data", file, "--progress", "false"), ("data", "info", file)):
        assert re.search("a.extxyz, frame 1: energy is ", fail(capsys, *command))
    assert main(["predict", str(run), str(file), "--out", str(tmp_path / "o.extxyz"), "--progress", "false"]) == 0


def test_labels_under_other_names(capsys, run, tmp_path):
    file = tmp_path / "a.extxyz"
    file.write_text(frame().replace("energy=", "REF_energy=").replace("forces", "REF_forces"))
    known = ["--energy_reference", "adsorption", "--progress", "false"]
    message = fail(capsys, "evaluate", run, "--data", file, "--energy_key", "REF_energy", *known)
    assert "frame 0: no label 'forces'; found energy, REF_energy; further columns of atoms: REF_forces" in message
    keys = ["--energy_key", "REF_energy", "--forces_key", "REF_forces"]
    assert main(["evaluate", str(run), "--data", str(file), *keys, *known]) == 0
    assert main(["data", "info", str(file), *keys]) == 0
    assert re.search(r"labels +energy forces\n", capsys.readouterr().out)


def test_empty_data_set(capsys, run, tmp_path):
    (tmp_path / "empty.extxyz").write_text("")
    error = fail(capsys, "evaluate", run, "--data", tmp_path / "empty.extxyz", "--progress", "false")
    assert "empty.extxyz" in error


def test_leaderboard_needs_ids(capsys, run, tmp_path):
    (tmp_path / "a.extxyz").write_text(frame())
    error = fail(capsys, "predict", run, tmp_path / "a.extxyz", "--out", tmp_path / "s.npz", "--progress", "false")
    assert "the leaderboard needs a different id" in error


@pytest.mark.parametrize("name", presets())
def test_built_in_configurations_are_valid(name):
    config = from_mapping(read_yaml(find_configuration(name)), name)
    assert task_of(outputs_of(config.task, resolved(config.task, config.loss))).quantities
