"""Several runs side by side: what is compared, what differs, and what is refused."""

import json
from pathlib import Path

import pytest
from report_runs import make_run

from equicat.cli.main import main
from equicat.errors import InputError
from equicat.report import figures as report_figures
from equicat.report.compare import compare, write_comparison
from equicat.report.read import read_run


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_figures, "_svg", lambda figure, label: "<svg></svg>")


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    found = [make_run(tmp_path / name) for name in ("first", "second")]
    text = (found[1] / "evaluation.json").read_text()
    (found[1] / "evaluation.json").write_text(text.replace('"energy_mae": 0.1,', '"energy_mae": 0.05,'))
    config = (found[1] / "config.yaml").read_text()
    (found[1] / "config.yaml").write_text(config.replace("seed: 17", "seed: 18"))
    return found


def test_results_and_differences(runs: list[Path]):
    page = compare([read_run(run) for run in runs], ("first", "second"))
    split = page.splits[0]
    assert split.title == "validation: val_id"
    column = split.headings.index("energy MAE [eV]")
    cells = [cells[column] for _, _, cells in split.rows]
    assert [(cell.text, cell.best) for cell in cells] == [("0.1000", False), ("0.0500", True)]
    alike = split.headings.index("force MAE [eV/Å]")
    assert page.differences == [("seed", "17", "18")]
    assert [cells[alike].text for _, _, cells in split.rows] == ["0.0200", "0.0200"]
    assert [panel.key for panel in page.curves] == ["epoch", "time"]
    assert len(page.bars) == 2


def test_energies_of_different_kinds_are_said_not_to_compare(runs: list[Path]):
    evaluation = json.loads((runs[0] / "evaluation.json").read_text())
    (runs[0] / "evaluation.json").write_text(json.dumps(evaluation | {"energy_reference": "total"}))
    page = write_comparison(runs).read_text()
    assert "different kinds (adsorption, total)" in page


def test_on_the_command_line(runs: list[Path], capsys: pytest.CaptureFixture):
    out, figures = runs[0].parent / "both.html", runs[0].parent / "figures"
    assert main(["report", *map(str, runs), "--out", str(out), "--figures", str(figures)]) == 0
    assert "2 runs side by side" in out.read_text()
    assert "first/cu-oxygen, second/cu-oxygen" in out.read_text()
    csv = (figures / "error-by-split-energy-mae.csv").read_text().splitlines()
    assert csv[0] == "group,series,value"
    assert "val_id,second/cu-oxygen,0.05" in csv
    assert (figures / "error-by-split-energy-mae.png").read_bytes()[:4] == b"\x89PNG"
    assert "var(--" not in (figures / "error-by-split-energy-mae.svg").read_text()
    assert main(["report", *map(str, runs), "--evaluations", "all"]) == 2
    assert "shows all evaluations" in capsys.readouterr().err


def test_bad_runs(runs: list[Path], tmp_path: Path):
    with pytest.raises(InputError, match="named twice"):
        write_comparison([runs[0], runs[0]])
    with pytest.raises(InputError, match="no such run directory"):
        write_comparison([runs[0], tmp_path / "nowhere"])
    with pytest.raises(InputError, match="figures go to a folder"):
        write_comparison(runs, figures=runs[0] / "config.yaml")
