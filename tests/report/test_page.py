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
import yaml
from places import FIXTURES
from report_runs import KNOWN, ROWS, TRAIN, make_run

from equicat.errors import InputError
from equicat.report import figures as report_figures
from equicat.report import page as report
from equicat.report.page import write_report

VOID = {"meta", "input", "br", "path", "use", "image", "rect"}


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
        "saved: 3",
        "0.4000",
        "0.0500",
        "120 frames of 30 systems, 2,400 free atoms",
        "30 of 30 systems chose the checkpoint; 0 of 30 systems were trained on",
        "264 frames of 12 systems",
        "23 frames of 1 system, which also chose the checkpoint",
        "So few systems say little about the next one",
        "subtracted: H2O -14.2000 eV",
        "2 systems and 31 frames left out (1 not converged)",
        "Cu111/O_top largest force 0.21 eV/Å",
    ):
        assert expected in text
    for title in ("Results", "Data", "Error by split", "Learning curves", "Parity", "Configuration", "Environment"):
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
def test_headline_errors_are_those_of_the_saved_epoch(run: Path) -> None:
    """Epoch 1 has the lowest validation loss, epoch 0 the lowest energy error, epoch 2 the lowest force error."""
    header = "epoch,step,time_s,lr,train_loss,val_loss,val_energy_mae,val_forces_mae\n"
    (run / "metrics.csv").write_text(header + "0,1,1,1,1,3.0,0.1,0.9\n1,2,2,1,1,1.0,0.2,0.6\n2,3,3,1,1,2.0,0.3,0.5\n")
    assert re.findall(r"validation \w+ MAE \[.*?\]</dt><dd>([\d.]+)", page_of(run)) == ["0.2000", "0.6000"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["splits"] = {"val": KNOWN | {"n_structures": 23, "n_systems": 1, "rows": ROWS}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(run)
    assert re.findall(r"validation \w+ MAE \[.*?\]</dt><dd>([\d.]+)", page) == ["0.1000", "0.0200"], "as in the table"
    assert "<dd>0.1000<small>23 frames of 1 system</small></dd>" in page


@pytest.mark.usefixtures("undrawn")
def test_other_evaluations_are_shown_when_asked_for(run: Path) -> None:
    folder = run / "evaluations" / "mine"
    (folder / "predictions").mkdir(parents=True)
    energy = np.arange(3.0)
    np.savez(folder / "predictions" / "test.npz", energy_true=energy, energy_pred=energy)
    result = {"n_structures": 3, "n_systems": 3, "n_free_atoms": 9, "rows": {"allegro": {"energy_mae": 3.66}}}
    summary = {
        "data": "/elsewhere/test.extxyz",
        "date": "2026-03-01T12:00:00+00:00",
        "energy_reference": "adsorption",
        "splits": {"test": result | {"outside_training": ["C–Pd were never neighbours in training (s1)"]}},
        "skipped": {"odd": "holds Ag"},
        "remarks": ["test: 3 systems say little"],
    }
    (folder / "metrics.json").write_text(json.dumps(summary))
    page = page_of(run)
    assert "3.6600" not in page
    assert "Evaluated on other data as well, not shown: mine" in page
    page = write_report(run, evaluations=("mine",)).read_text()
    for text in (
        "3.6600",
        "Evaluation “mine”",
        "/elsewhere/test.extxyz",
        "2026-03-01 12:00:00",
        "C–Pd were never",
        "odd was skipped: holds Ag",
        "3 systems say little.",
    ):
        assert text in page
    assert "not shown" not in page
    assert page == write_report(run, evaluations=("all",)).read_text()
    parsed(page)
    with pytest.raises(InputError, match=r"no evaluation 'min'.*did you mean 'mine'.*there is mine"):
        write_report(run, evaluations=("min",))


@pytest.mark.usefixtures("undrawn")
def test_predictions_of_an_evaluation_that_was_replaced_are_not_shown(run: Path) -> None:
    """Earlier versions left them there."""
    arrays = np.load(run / "predictions" / "val_id.npz")
    np.savez(run / "predictions" / "stale.npz", **arrays)
    assert "stale" not in page_of(run)


@pytest.mark.usefixtures("undrawn")
def test_runs_of_earlier_versions_counted_structures(run: Path) -> None:
    (run / "data.json").unlink()
    split = {"n_systems": 120, "n_free_atoms": 2400, "rows": ROWS}
    (run / "evaluation.json").write_text(json.dumps({"splits": {"val_id": split}}))
    page = page_of(run)
    assert "120 structures, 2,400 free atoms" in page
    assert "120 systems" not in page


@pytest.mark.usefixtures("undrawn")
def test_many_catalysts_are_summed_up(run: Path) -> None:
    model = json.loads((run / "model.json").read_text())
    names = {f"Cu{k}": 1 for k in range(1, 60)}
    model["domain"] = {"adsorbates": {"O": 59, "": 2}, "catalysts": names, "systems": {"O": names}}
    (run / "model.json").write_text(json.dumps(model))
    assert '<tbody>\n<tr><th scope="row">Cu1</th><td>1</td><td>·</td></tr>' in page_of(run), "catalysts go down"
    model["domain"]["systems"] = {}
    (run / "model.json").write_text(json.dumps(model))
    assert "2 adsorbates (O 59, clean slab 2) on 59 catalysts (Cu1 1," in page_of(run)


@pytest.mark.usefixtures("undrawn")
def test_nan_is_shown_and_never_best(run: Path) -> None:
    rows = {"allegro": {"energy_mae": math.nan}, "baseline": {"energy_mae": 0.5, "forces_mae": None}}
    (run / "evaluation.json").write_text(json.dumps({"splits": {"val_id": {"rows": rows}}}))
    page = page_of(run)
    assert re.findall(r'<td class="best">([\d.]+)', page) == ["0.5000"]
    assert "<td>nan" in page


PARTS = ["metrics.csv", "config.yaml", "environment.json", "evaluation.json", "predictions", "data.json"]


@pytest.mark.parametrize("name", PARTS)
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
        ("data.json", "{}"),
        ("data.json", '{"train": {"n_structures": 1}, "val": {}}'),
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
    assert page.count('class="missing"') == 5


def test_names_are_escaped(run: Path) -> None:
    evil = "<script>alert('$x$')</script>"
    rows = {f"{evil} & {k}": row for k, row in ROWS.items()}
    (run / "evaluation.json").write_text(json.dumps({"splits": {evil: {"rows": rows}}, "energy_reference": evil}))
    (run / "config.yaml").write_text(yaml.safe_dump({"task": evil, "data": {"train": [evil]}}))
    domain = {"adsorbates": {evil: 1}, "catalysts": {evil: 1}, "systems": {evil: {evil: 1}}}
    model = {"model": {"l_max": evil, "cutoff": evil}, "energy_reference": evil, "domain": domain}
    (run / "model.json").write_text(json.dumps(model))
    (run / "environment.json").write_text(json.dumps({evil: evil}))
    part = {key: evil if isinstance(value, str) else value for key, value in TRAIN.items()}
    part |= {"elements": [evil], "reference_energies": {evil: 1.0}}
    part["set_aside"] = {
        "systems": 1,
        "frames": 0,
        "reasons": {evil: 1},
        "listed": [{"system": evil, "reasons": [evil]}],
    }
    (run / "data.json").write_text(json.dumps({"train": part, "val": part}))
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

    def fail(run: report.RunFiles, parts: dict) -> str:
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
    first, second = (report_figures.learning_curves([curve], "epoch", "energy").svg for _ in range(2))
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_parity_counts_what_it_does_not_show() -> None:
    target = np.linspace(-1, 1, 100)
    prediction = target + 0.1
    prediction[:3] = [math.nan, math.inf, 1e6]
    drawing, hidden = report_figures.parity(target, prediction, "eV", "energy")
    assert hidden == 3
    assert drawing.svg.count("<use") > 97 - 1


def test_many_points_become_a_density() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=200_000)
    drawing, hidden = report_figures.parity(target, target + 0.1 * rng.normal(size=target.size), "eV/Å", "forces")
    svg = drawing.svg
    assert "data:image/png;base64" in svg
    assert len(svg) < 60_000
    assert len(drawing.columns["count"]) < 10_000
    assert sum(drawing.columns["count"]) == target.size - hidden
    assert hidden < 0.005 * target.size


@pytest.mark.parametrize("values", [[math.nan] * 3, [0.0] * 3, [2.5] * 3, []])
def test_parity_of_degenerate_values(values: list[float]) -> None:
    array = np.array(values)
    drawing, hidden = report_figures.parity(array, array, "eV", "energy")
    assert "<svg" in drawing.svg
    assert hidden == np.isnan(array).sum()


def test_curves_are_logarithmic_only_where_they_can_be() -> None:
    x = np.arange(4.0)

    def ticks(y: list[float], log: bool = True) -> list[str]:
        curve = report_figures.Curve(x, np.array(y), series=0)
        svg = report_figures.learning_curves([curve], "epoch", "energy", log=log).svg
        return re.findall(r">([^<>]+)</text>", svg)

    assert {"0.1", "1", "10"} <= set(ticks([30.0, 3.0, math.nan, 0.05]))
    assert "0.1" not in ticks([30.0, 3.0, 0.0, -1.0])
    assert "10" in ticks([30.0, 3.0, 0.0, -1.0])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["allegro", "is2rs_pair", "converted_nequip_allegro"])
def test_runs_of_the_commit_before_have_a_page(tmp_path: Path, name: str) -> None:
    stored = FIXTURES / "runs_b139b12" / name
    page = write_report(stored, tmp_path / "page.html").read_text()
    parsed(page)
    assert '<p class="missing"><code>data.json</code> is missing.' in page
