"""The report of a run: complete, partial, damaged and hostile directories."""

import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from equicat.errors import InputError
from equicat.report import figures as report_figures
from equicat.report import page as report
from equicat.report.page import write_report

VOID = {"meta", "input", "br", "path", "use", "image", "rect"}
ROWS = {
    "allegro": {"energy_mae": 0.1, "energy_within_threshold": 0.25, "forces_mae": 0.02},
    "mean energy, F = 0": {"energy_mae": 1.0, "energy_within_threshold": 0.01, "forces_mae": 0.016},
    "linear reference, F = 0": {"energy_mae": 0.5, "energy_within_threshold": 0.02, "forces_mae": 0.4},
}


def make_run(folder: Path) -> Path:
    """A complete run directory with two splits."""
    run = folder / "cu-oxygen"
    (run / "predictions").mkdir(parents=True)
    (run / "metrics.csv").write_text(
        "epoch,step,time_s,lr,train_loss,train_energy_mae,val_loss,val_energy_mae,val_forces_mae\n"
        "0,10,30,0.002,3.0,1.0,,,\n"
        "1,20,60,0.002,2.0,0.7,2.5,0.9,0.08\n"
        "2,30,90,0.001,1.0,0.3,1.5,0.4,0.05\n"
    )
    (run / "config.yaml").write_text(yaml.safe_dump({"task": "s2ef", "data": {"train": ["data/emt"]}, "seed": 17}))
    (run / "environment.json").write_text(
        json.dumps({"versions": {"torch": "2.13.0"}, "commit": "abc123", "devices": []})
    )
    model = {"name": "allegro", "cutoff": 5.0, "n_layers": 2, "l_max": 1}
    description = {
        "task": "s2ef",
        "model": model,
        "energy_reference": "adsorption",
        "statistics": {"elements": [8, 29]},
    }
    (run / "model.json").write_text(json.dumps(description))
    save_file({"weight": torch.zeros(30, 41), "scale": torch.tensor(1.0)}, run / "model.safetensors")
    splits = {split: {"n_systems": 120, "n_free_atoms": 2400, "rows": ROWS} for split in ("val_id", "val_ood_ads")}
    evaluation = {"task": "s2ef", "data": "data/emt", "energy_reference": "adsorption", "splits": splits}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    rng = np.random.default_rng(0)
    for split in splits:
        energy, forces = rng.normal(size=120), rng.normal(size=(2400, 3))
        np.savez(
            run / "predictions" / f"{split}.npz",
            energy_true=energy,
            energy_pred=energy + 0.1 * rng.normal(size=120),
            forces_true=forces,
            forces_pred=forces + 0.02 * rng.normal(size=(2400, 3)),
            n_atoms=np.full(120, 30),
        )
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a complete run, figures drawn."""
    return page_of(make_run(tmp_path_factory.mktemp("report")))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn, which is what takes the time."""
    monkeypatch.setattr(report_figures, "_svg", lambda figure, label: "<svg></svg>")


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Fails on tags that do not match; collects text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_a_complete_run(page: str) -> None:
    text = " ".join(" ".join(parsed(page).text).split())
    for expected in (
        "cu-oxygen",
        "Allegro, l max 1, 2 layers",
        "S2EF",
        "data/emt",
        "adsorption",
        "1 230",
        "O Cu",
        "90 s",
        "0.4000",
        "0.0500",
    ):
        assert expected in text
    for title in ("Results", "Error by split", "Learning curves", "Parity", "Configuration", "Environment"):
        assert f"<h2>{title}</h2>" in page
    assert "seed: 17" in text
    assert "abc123" in text
    assert 'class="missing"' not in page
    # loss, energy and forces, against epochs and time; two bar charts; energy and forces of two splits
    assert page.count("<svg") == 2 * 3 + 2 + 2 * 2


def test_it_needs_nothing_else(page: str) -> None:
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    assert not re.search(r"url\((?!#)|@import", page)
    ids = Counter(re.findall(r'\bid="([^"]*)"', page))
    assert [name for name, count in ids.items() if count > 1] == []
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', page)) <= set(ids), "every clip path and marker is there"


def test_figures_follow_the_page(page: str) -> None:
    """No fixed colour of text or lines is left, no fixed font, no fixed size."""
    assert not re.search("#0[13]0[13]0[1-6]", page)
    assert "currentColor" in page
    assert "var(--series-1)" in page
    for tag in re.findall(r"<svg [^>]*>", page):
        assert "viewBox" in tag
        assert "aria-label" in tag
        assert not re.search(r'\s(width|height)="', tag)


@pytest.mark.usefixtures("undrawn")
def test_best_in_bold_and_ratio_to_the_best_baseline(run: Path) -> None:
    page = page_of(run)
    first = page[page.index("<table>") : page.index("</table>")]
    assert re.findall(r'<td class="best">([\d.]+)', first) == ["0.1000", "25.00", "0.0160"]
    assert re.findall(r"<small>(\S+) ×</small>", first) == ["0.20", "1.2"], "of errors, for the model only"


@pytest.mark.usefixtures("undrawn")
def test_nan_is_shown_and_never_best(run: Path) -> None:
    rows = {"allegro": {"energy_mae": math.nan}, "baseline": {"energy_mae": 0.5, "forces_mae": None}}
    (run / "evaluation.json").write_text(json.dumps({"splits": {"val_id": {"rows": rows}}}))
    page = page_of(run)
    assert re.findall(r'<td class="best">([\d.]+)', page) == ["0.5000"]
    assert "<td>nan" in page


@pytest.mark.parametrize("name", ["metrics.csv", "config.yaml", "environment.json", "evaluation.json", "predictions"])
@pytest.mark.usefixtures("undrawn")
def test_a_missing_part_is_said_to_be_missing(run: Path, name: str) -> None:
    path = run / name
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink()
    page = page_of(run)
    parsed(page)
    assert f'<p class="missing"><code>{name}</code> is missing.' in page
    assert page.count('class="missing"') == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", "epoch,val_loss\n1,abc\n"),
        ("metrics.csv", "epoch,val_loss\n"),
        ("config.yaml", "a: [1"),
        ("environment.json", "{"),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"splits": {"val_id": {"rows": {"allegro": {"energy_mae": "low"}}}}}'),
        ("evaluation.json", '{"splits": {"val_id": {}}}'),
        ("predictions/val_id.npz", "no archive"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_damaged_part_is_said_to_be_damaged(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    page = page_of(run)
    parsed(page)
    assert f'<p class="missing"><code>{name}</code> is damaged' in page


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, "{", '{"model": 3, "statistics": {"elements": "CuO"}}'])
@pytest.mark.usefixtures("undrawn")
def test_the_headline_survives_without_a_model(run: Path, name: str, content: str | None) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    page = page_of(run)
    parsed(page)
    assert "S2EF" in page


@pytest.mark.usefixtures("undrawn")
def test_predictions_that_do_not_fit_are_damaged(run: Path) -> None:
    np.savez(run / "predictions" / "val_id.npz", energy_true=np.zeros(3), energy_pred=np.zeros(2))
    assert "energy: (2,) predictions for (3,) references" in page_of(run)


@pytest.mark.usefixtures("undrawn")
def test_only_metrics(tmp_path: Path) -> None:
    """A run that has just started, without epochs in its table."""
    (tmp_path / "metrics.csv").write_text("time_s,val_loss\n30,1.0\n")
    page = page_of(tmp_path)
    parsed(page)
    assert "by-time" in page
    assert 'id="x-epoch"' not in page
    assert page.count('class="missing"') == 4


def test_names_are_escaped(run: Path) -> None:
    evil = "<script>alert('$x$')</script>"
    rows = {f"{evil} & {k}": row for k, row in ROWS.items()}
    (run / "evaluation.json").write_text(json.dumps({"splits": {evil: {"rows": rows}}, "energy_reference": evil}))
    (run / "config.yaml").write_text(yaml.safe_dump({"task": evil, "data": {"train": [evil]}}))
    (run / "model.json").write_text(json.dumps({"model": {"l_max": evil, "cutoff": evil}, "energy_reference": evil}))
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    page = page_of(run.rename(run.with_name("a & b <i>")))
    parsed(page)
    assert "<script" not in page.lower()
    assert "<i>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.usefixtures("undrawn")
def test_written_atomically(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run.parent / "page.html"
    assert write_report(run, out) == out
    before = out.read_text()

    def fail(run: report.RunFiles) -> str:
        raise RuntimeError("no space")

    monkeypatch.setattr(report, "render", fail)
    with pytest.raises(RuntimeError, match="no space"):
        write_report(run, out)
    assert out.read_text() == before
    assert sorted(p.name for p in run.parent.iterdir()) == ["cu-oxygen", "page.html"]


def test_bad_directories(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a run directory, it has none of metrics\.csv"):
        write_report(tmp_path)


def test_drawing_is_reproducible_and_leaves_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    curve = report_figures.Curve(np.arange(3.0), np.array([3.0, 2.0, 1.0]), series=0)
    first, second = (report_figures.learning_curves([curve], "epoch", "energy") for _ in range(2))
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_parity_counts_what_it_does_not_show() -> None:
    target = np.linspace(-1, 1, 100)
    prediction = target + 0.1
    prediction[:3] = [math.nan, math.inf, 1e6]
    svg, hidden = report_figures.parity(target, prediction, "eV", "energy")
    assert hidden == 3
    assert svg.count("<use") > 97 - 1


def test_many_points_become_a_density() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=200_000)
    svg, hidden = report_figures.parity(target, target + 0.1 * rng.normal(size=target.size), "eV/Å", "forces")
    assert "data:image/png;base64" in svg
    assert len(svg) < 60_000
    assert hidden < 0.005 * target.size


@pytest.mark.parametrize("values", [[math.nan] * 3, [0.0] * 3, [2.5] * 3, []])
def test_parity_of_degenerate_values(values: list[float]) -> None:
    array = np.array(values)
    svg, hidden = report_figures.parity(array, array, "eV", "energy")
    assert "<svg" in svg
    assert hidden == np.isnan(array).sum()


def test_curves_are_logarithmic_only_where_they_can_be() -> None:
    x = np.arange(4.0)

    def ticks(y: list[float], log: bool = True) -> list[str]:
        curve = report_figures.Curve(x, np.array(y), series=0)
        svg = report_figures.learning_curves([curve], "epoch", "energy", log=log)
        return re.findall(r">([^<>]+)</text>", svg)

    assert {"0.1", "1", "10"} <= set(ticks([30.0, 3.0, math.nan, 0.05]))
    assert "0.1" not in ticks([30.0, 3.0, 0.0, -1.0])
    assert "10" in ticks([30.0, 3.0, 0.0, -1.0])
