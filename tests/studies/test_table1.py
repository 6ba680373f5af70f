"""`equicat study table1`: trained on a tiny data set, resumed, and its tables as functions of stored results."""

import csv
import json
import re
from dataclasses import replace

import pytest
from study_results import result, write_presets

from equicat import InputError
from equicat.cli.main import main
from equicat.errors import Remark
from equicat.relaxation.config import RelaxConfig
from equicat.studies import run_cell as module
from equicat.studies.cells import CELLS, Plan
from equicat.studies.columns import columns
from equicat.studies.models import MODELS, Grid
from equicat.studies.outcome import publish
from equicat.studies.published import differences, figure_of, published
from equicat.studies.run_cell import RUN, run_cell
from equicat.studies.study_data import StudyData
from equicat.studies.table1 import Table1Options, cells, outcome, split_table
from equicat.studies.workers import do_cells


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    return write_presets(tmp_path_factory.mktemp("presets"))


SMALLEST = ("--seeds", "2", "--tasks", "[is2re]", "--sizes", "[8]")


def command(data, out, presets, *more: str) -> list[str]:
    words = ["study", "table1", str(data), "--out", str(out), "--presets", str(presets), "--epochs", "1"]
    return [*words, "--models", "[allegro-l1, schnet]", *more]


@pytest.fixture(scope="module")
def study(data, presets, tmp_path_factory):
    """A finished study: two models, IS2RE at one size, two seeds. Treat as read-only."""
    out = tmp_path_factory.mktemp("studies") / "table1"
    assert main(command(data, out, presets, *SMALLEST)) == 0
    return out


def test_a_study_writes_table_results_and_figure(study):
    page = (study / "table.md").read_text()
    assert "Cells: 4 of 4 done" in page
    assert "Equal epochs: 1 epochs" in page
    assert re.search(r"Parameters: allegro-l1 \d+, schnet \d+", page)
    for text in ("allegro-l1", "schnet", "*linear reference", "(OC20 10k: 0.9377)", "size (8 against 10,000)"):
        assert text in page
    results = json.loads((study / "results.json").read_text())
    assert (results["n_cells"], results["n_finished"], len(results["cells"])) == (4, 4, 4)
    assert results["command"].split()[0] == "equicat"
    assert all(cell["n_parameters"] > 100 and cell["epochs"] == 1 and cell["seconds"] > 0 for cell in results["cells"])
    with (study / "figure.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["row"] for row in rows} > {"allegro-l1", "schnet"}
    assert (study / "figure.png").stat().st_size > 1000
    assert (study / "figure.svg").stat().st_size > 1000


def test_a_finished_study_trains_nothing_again(study, data, presets, monkeypatch, capsys):
    monkeypatch.setattr(module, "train", None)
    assert main(command(data, study, presets, *SMALLEST)) == 0
    assert "4 cells, 4 of them done already" in capsys.readouterr().out


def test_workers_of_their_own_find_nothing_left(study, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("result.json")}
    do_cells(Plan.read(study), workers=2)
    assert {path: path.stat().st_mtime_ns for path in study.rglob("result.json")} == before
    with pytest.raises(InputError, match="2 of 2 workers ended with status 2; what is finished is kept"):
        do_cells(replace(Plan.read(study), out=tmp_path / "nothing"), workers=2)


def test_a_stopped_study_goes_on_with_the_missing_cells(data, presets, tmp_path, monkeypatch):
    trained: list[str] = []
    real = module.train

    def counted(config):
        trained.append(config.run.out)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(config)

    monkeypatch.setattr(module, "train", counted)
    words = command(data, tmp_path / "study", presets, "--seeds", "1", "--tasks", "[is2re]", "--sizes", "[4, 8, all]")
    words[words.index("[allegro-l1, schnet]")] = "[allegro-l1, allegro-l1]"
    assert main(words) == 130
    assert "Cells: 1 of 3 done" in (tmp_path / "study" / "table.md").read_text()
    assert main(words) == 0
    assert len(trained) == 4
    assert len(set(trained)) == 3, "only the cell that was stopped is trained twice"


def test_training_goes_on_after_its_last_epoch(data, presets, tmp_path):
    relaxation = RelaxConfig(fmax=1e-4, max_steps=2)
    options = Table1Options(
        ("allegro-l1",), presets=str(presets), epochs=3, seeds=1, tasks=("s2ef",), relaxation=relaxation
    )
    (cell,) = cells(StudyData(data), options)
    first = module.configuration(cell, data, tmp_path / RUN)
    module.train(replace(first, run=replace(first.run, max_epochs=1, val_every=1)))
    before = (tmp_path / RUN / "metrics.csv").read_text().splitlines()[1]
    found = run_cell(cell, data, tmp_path)
    lines = (tmp_path / RUN / "metrics.csv").read_text().splitlines()
    assert (found["epochs"], len(lines)) == (3, 4)
    assert lines[1] == before
    assert {"model", "model, relaxed", "linear reference, no displacement, relaxed"} <= set(found["splits"]["val_id"])
    assert found["relaxations"]["val_id"]["mean_steps"] == 2


def test_plans_have_seeds_outermost_and_nested_subsets(data, presets):
    options = Table1Options(("schnet", "allegro-l1"), presets=str(presets), seeds=2, epochs=5, direct_epochs=7)
    plan = cells(StudyData(data), options)
    assert [cell.seed for cell in plan] == sorted(cell.seed for cell in plan)
    assert {c.n_train for c in plan if c.task == "is2re"} == {4, 8, 16}
    assert {c.head for c in plan if c.model == "schnet" and c.task == "is2rs"} == {"gradient"}
    assert {c.head for c in plan if c.model == "allegro-l1" and c.task == "is2rs"} == {
        "gradient",
        "magnitude-direction",
        "vector",
        "pair",
    }
    assert {(c.task, c.config["run"]["max_epochs"]) for c in plan} == {("s2ef", 5), ("is2re", 7), ("is2rs", 7)}
    assert {c.config["model"].get("l_max") for c in plan if c.model == "allegro-l1"} == {1}
    assert all("loss" not in c.config for c in plan if c.task != "s2ef"), "a loss belongs to its task"
    seeds = {(c.seed, c.config["data"]["split_seed"]) for c in plan if c.task == "is2re"}
    assert len(seeds) == 2, "subsets of one seed are nested"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "[allegro-l4]"], "no model 'allegro-l4' (did you mean 'allegro-l"),
        (["--models", "[cgcnn]"], "there is nothing to train: no model has a preset for a task of the data"),
        (["--train", "{run.val_every: often}"], "run.val_every is often; it must be a whole number"),
        (["--tasks", "[is2re]", "--sizes", "[17]"], "17 structures is asked for, is2re trains on 16"),
        (["--train", "{run.batch_sise: 3}"], "the nearest is run.batch_size"),
        (["--direct_minutes", "3"], "direct_minutes is for is2re and is2rs beside minutes"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_written(data, presets, tmp_path, capsys, words, message):
    assert main(command(data, tmp_path / "out", presets, *words)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("equicat: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_a_model_without_preset_is_left_out_with_a_remark(data, presets):
    options = Table1Options(("schnet", "nequip"), presets=str(presets), seeds=2, tasks=("s2ef",))
    with pytest.warns(Remark, match="none of nequip for s2ef, which is left out") as caught:
        plan = cells(StudyData(data), options)
    assert len(caught) == 1
    assert {cell.model for cell in plan} == {"schnet"}


def test_presets_of_oc20_are_those_of_task_and_size(data):
    grid = Grid(StudyData(data), Table1Options(presets="oc20"))
    for n, batch in ((9_000, "64"), (110_000, "32"), (460_328, "64")):
        values = grid.preset(MODELS["schnet"], "is2re", n)
        assert values["run"]["batch_size"] == batch
        assert "data" not in values
    assert "loss" in grid.preset(MODELS["gemnet-dt"], "s2ef", 10)


def test_a_split_is_no_data_set(data, tmp_path, presets, capsys):
    assert main(command(data / "s2ef" / "train", tmp_path / "out", presets)) == 2
    assert "a study needs a data set directory, with the splits train and val_id" in capsys.readouterr().err


# ---- tables of stored results --------------------------------------------------------------------------------------


def test_cells_of_the_table_are_mean_and_standard_deviation():
    results = [result("schnet", 0, 0.2), result("schnet", 1, 0.4), result("nequip", 0, 0.1)]
    lines = split_table(results, "val_ood_ads").splitlines()
    assert lines[0] == "|  | IS2RE 10,000 energy MAE [eV] |"
    assert lines[2:] == [
        "| schnet | 0.3000 ± 0.1414 |",
        "| nequip | 0.1000 |",
        "| *mean energy, F = 0, no displacement* | 0.9000 |",
        "| *linear reference, F = 0, no displacement* | 0.5000 |",
    ]
    assert "| schnet | 0.3000 ± 0.1414 (OC20 10k: 1.0590) |" in split_table(results, "val_id")


def test_published_figures_stand_by_size_or_by_place():
    exact = [result("schnet", 0, 0.2, 100_000)]
    assert figure_of("schnet", columns(exact)[0], exact).value == 0.7137
    small = [result("schnet", 0, 0.2, n) for n in (18, 36, 72)]
    found = [figure_of("schnet", column, small).size for column in columns(small)]
    assert found == ["10k", "100k", "all"]
    assert figure_of("nequip", columns(small)[0], small) is None


def test_differences_are_named_unless_there_are_none():
    theirs = next(f for f in published() if (f.model, f.task, f.size) == ("schnet", "is2re", "10k"))
    ours = result("schnet", 0, 0.2, 10_000)
    assert differences(theirs, ours, {"dataset": "OC20"}, "oc20") == "nothing"
    text = differences(theirs, result("schnet", 0, 0.2, 72), {"generator": "equicat data emt"}, "small")
    assert text == (
        "data (equicat data emt); size (72 against 10,000); network and training (presets small, 7 parameters)"
    )


def test_every_published_model_has_a_place():
    names = {(f.task, f.model) for f in published()}
    assert names <= {(task, name) for model in MODELS.values() for task, name in model.published.items()}


def test_failed_cells_are_listed(study, data, tmp_path, presets):
    options = Table1Options(("schnet",), presets=str(presets), tasks=("is2re",), sizes=("all",), seeds=1)
    plan = Plan(tmp_path, "table1", str(data), "digest", tuple(cells(StudyData(data), options)))
    plan.write()
    (folder,) = plan.folders.values()
    folder.mkdir(parents=True)
    failure = {**plan.cells[0].labels, "failed": "no validation loss was a number"}
    (folder / "result.json").write_text(json.dumps(failure))
    path = publish(plan, outcome([], StudyData(data), options), StudyData(data).summary(), "equicat study")
    assert "- schnet, is2re, 16 structures, seed 0: no validation loss was a number" in path.read_text()
    assert CELLS in {p.name for p in tmp_path.iterdir()}
