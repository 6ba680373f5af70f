"""RESULTS.md is what the measurements say, and the scripts of ``benchmarks`` write what it is made from."""

import importlib
import json
import sys

import numpy as np
import pytest
from places import ROOT

from equicat.apply.evaluate import evaluate
from equicat.errors import InputError
from equicat.files import write_json

BENCHMARKS = ROOT / "benchmarks"
MEASURING = {
    "active_learning", "baselines_speed", "baselines_trained", "calculator_nve", "calculator_speed", "calibration",
    "direct_tasks", "exports", "fine_tuning", "gpu_graphs", "gpu_lists", "gpu_products", "grade", "host_of_a_step",
    "kill_and_resume", "lammps_md", "linear_share", "long_range", "neb", "ranks", "relaxation_speed",
    "relaxed_or_direct", "remedies", "remedies_forces", "rounded_products", "trained_step", "vibrations_speed",
}  # fmt: skip
OTHERS = {
    "tables", "envelope", "baselines_speed_worker", "fairchem_reference", "force_variants", "plot_curve",
    "synthetic_oc20",
}  # fmt: skip
"""Scripts that make pages, figures and data, and the other half of a measurement."""


@pytest.fixture
def script(monkeypatch):
    """Runs the ``main`` of a script, or gives its module if there are no arguments."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def imported(name: str, *arguments: object):
        module = importlib.import_module(name)
        if arguments:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
            module.main()
        return module

    yield imported
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)
    sys.modules.pop("worker", None)


def test_results_are_what_the_measurements_say(script):
    page = script("tables").page(BENCHMARKS / "results")
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == page, "run python benchmarks/tables.py"


def test_lists_on_a_device_are_measured_beside_others(script, tmp_path):
    options = ("--device", "cpu", "--atoms", 100, "--n_slabs", 1, "--steps", 1, "--repeats", 1)
    script("gpu_lists", *options, "--json", tmp_path / "lists.json")
    found = script("tables").measurement(tmp_path / "lists.json")["results"]
    assert [row[-1] for row in found["Lists"]["rows"]] == ["yes", "yes"]
    assert found["Relaxation"]["rows"][0][0] == "all, as it is"


def test_a_script_writes_a_measurement(script, tmp_path, capsys):
    """Two slabs relaxed with EMT: both ways take the same steps."""
    script("relaxation_speed", "--emt", 2, "--max_steps", 2, "--json", tmp_path / "relaxation.json")
    found = script("tables").measurement(tmp_path / "relaxation.json")
    assert found["command"] == [
        f"python benchmarks/relaxation_speed.py --emt 2 --max_steps 2 --json {tmp_path / 'relaxation.json'}"
    ]
    assert "cores of" in found["machine"]
    (shown,) = found["results"].values()
    assert [row[3] for row in shown["rows"]] == ["2.0", "2.0"]
    text = script("tables").page(tmp_path)
    assert text.startswith("# Measured results")
    printed = capsys.readouterr().out
    for row in (shown["columns"], *shown["rows"]):
        assert f"| {' | '.join(row)} |" in text
        assert f"| {' | '.join(row)} |" in printed


def test_error_bars_that_are_right_hold_and_one_bar_for_all_does_not(script):
    """Errors are normal and of two sizes, of which each split has its own mixture: the size is the right bar."""
    calibration, rng = script("calibration"), np.random.default_rng(0)
    splits = {}
    for name, share_of_large in (("val_id", 0.1), ("val_ood", 0.9)):
        size = np.where(rng.random(20_000) < share_of_large, 1.0, 0.1)
        error = size[:, None] * rng.normal(size=(20_000, 3))
        splits[name] = error, {"constant": np.ones(20_000), "grade": size[::-1], "spread": 7 * size}
    rows = {(row[0], row[3]): row[4:] for row in calibration.rows_of(splits, "val_id")}
    scale, one, two, ranks = rows["val_ood", "spread"]
    assert float(scale) == pytest.approx(1 / 7, rel=0.02)
    assert (float(one), float(two)) == pytest.approx((68.3, 95.4), abs=1)
    assert float(ranks) > 0.4
    assert float(rows["val_id", "constant"][1]) == pytest.approx(68.3, abs=0.1)
    assert float(rows["val_ood", "constant"][1]) < 30


def test_numbers_of_a_command_get_an_envelope(script, run, data, tmp_path):
    """The numbers of an evaluation are shown as `equicat evaluate` shows them."""
    summary = evaluate(
        run, data / "s2ef" / "val_id", out=tmp_path / "evaluation", progress=False, outside_training="ignore"
    )
    write_json(tmp_path / "numbers.txt", summary)
    script(
        "envelope", tmp_path / "shown.json", "--numbers", tmp_path / "numbers.txt", "--kind", "splits",
        "--title", "A tiny run", "--command", "equicat evaluate RUN", "--notes", "Nothing is learnt in three epochs.",
    )  # fmt: skip
    text = script("tables").page(tmp_path)
    assert "## A tiny run\n\n```bash\nequicat evaluate RUN\n```\n\n```text\nval_id\n" in text
    assert "force MAE [eV/Å]" in text
    assert text.endswith("Nothing is learnt in three epochs.\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": ""}, "no title"),
        ({"command": []}, "no command"),
        ({"machine": None}, "no machine"),
        ({"results": {}}, "no results"),
        ({"kind": "picture"}, "kind is 'picture'; it must be one of"),
    ],
)
def test_half_an_envelope_is_refused(script, tmp_path, change, message):
    whole = {"title": "t", "kind": "tables", "command": ["c"], "machine": "m", "notes": [], "results": {"": {}}}
    (tmp_path / "half.json").write_text(json.dumps(whole | change))
    with pytest.raises(InputError, match=message):
        script("tables").page(tmp_path)


@pytest.mark.parametrize("name", sorted(MEASURING))
def test_scripts_that_measure_have_the_option(script, name, capsys):
    """A script that imports what is gone fails here."""
    with pytest.raises(SystemExit):
        script(name, "--help")
    assert "--json" in capsys.readouterr().out


def test_a_script_measures_or_is_known_not_to(script):
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == MEASURING | OTHERS
    assert script("baselines_speed_worker").Baseline
