"""Pages in a real browser: no errors, no requests, structures turn, tables sort, narrow screens and keyboards do."""

from pathlib import Path

import numpy as np
import pytest
from chromium import browser, colours, watched
from report_runs import kept_of, make_run, run_with_structures

from equicat.report.compare import write_comparison
from equicat.report.page import write_report


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = run_with_structures(tmp_path_factory.mktemp("browser"))
    np.savez(run / "predictions" / "val_id.npz", **kept_of(32, name="</script><i>evil"))
    return write_report(run, evaluations=("all",))


def box_of(locator) -> dict[str, float]:
    return locator.bounding_box()


def test_a_report_opens_without_errors_and_requests(chromium, report: Path):
    with watched(chromium) as seen:
        seen.open(report)
        headings = seen.page.locator("h2").all_text_contents()
        assert {"Where it errs", "Worst structures", "Relaxations", "Data"} <= set(headings)
        assert seen.page.locator("i:has-text('evil')").count() == 0
        assert seen.page.locator("script[type='application/json']").count() > 20
    assert seen.problems == []


def test_a_structure_turns_and_shows_before_and_after(chromium, report: Path):
    with watched(chromium) as seen:
        seen.open(report)
        figure = seen.page.locator("#relaxations figure", has=seen.page.locator("button[data-view^=moved]")).first
        assert figure.locator("svg").is_visible()
        figure.get_by_role("button", name="turn in 3D").click()
        canvas = figure.locator(".canvas")
        figure.locator(".status", has_text="13 atoms").wait_for()
        assert not figure.locator("svg").is_visible()
        assert "initial" in canvas.get_attribute("aria-label")
        before = canvas.screenshot()
        assert colours(canvas) > 20
        figure.get_by_role("radio", name="relaxed").check()
        assert "relaxed" in canvas.get_attribute("aria-label")
        assert canvas.screenshot() != before
        # One view at a time.
        seen.page.locator("button[data-view=vector_error-0]").click()
        seen.page.locator("#structures .status", has_text="13 atoms").wait_for()
        assert seen.page.locator(".canvas").count() == 1
        assert figure.locator("svg").is_visible()
        assert {"reference forces", "predicted forces", "cell"} <= set(
            seen.page.locator(".switches label").all_text_contents()
        )
    assert seen.problems == []


def test_a_relaxation_has_a_slider(chromium, report: Path):
    with watched(chromium) as seen:
        seen.open(report)
        seen.page.locator("button[data-view=relaxation-0]").click()
        seen.page.locator(".status", has_text="13 atoms").wait_for()
        slider = seen.page.get_by_role("slider")
        slider.press("End")
        assert seen.page.locator(".stage output").text_content() == "reference"
        slider.press("Home")
        assert seen.page.locator(".stage output").text_content() == "step 0"
    assert seen.problems == []


def test_the_keyboard_is_enough(chromium, report: Path):
    with watched(chromium) as seen:
        seen.open(report)
        button = seen.page.locator("button[data-view=vector_error-0]")
        button.focus()
        seen.page.keyboard.press("Enter")
        seen.page.locator(".status", has_text="13 atoms").wait_for()
        assert button.get_attribute("aria-expanded") == "true"
        canvas = seen.page.locator(".canvas")
        before = canvas.screenshot()
        seen.page.keyboard.press("Tab")
        assert canvas.evaluate("element => element === document.activeElement")
        seen.page.keyboard.press("ArrowLeft")
        seen.page.keyboard.press("ArrowLeft")
        seen.page.wait_for_timeout(100)
        assert canvas.screenshot() != before
        seen.page.keyboard.press("Escape")
        assert button.get_attribute("aria-expanded") == "false"
        assert button.evaluate("element => element === document.activeElement")
    assert seen.problems == []


def test_it_fits_a_phone(chromium, report: Path):
    with watched(chromium, width=390) as seen:
        seen.open(report)
        seen.page.locator("button[data-view=vector_error-0]").click()
        seen.page.locator(".status", has_text="13 atoms").wait_for()
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390
        tops = [box["y"] for box in map(box_of, seen.page.locator("#structures figure").all()[1:5])]
        assert tops[0] == tops[1] < tops[2] == tops[3], "two pictures in a row"


def test_a_comparison_sorts(chromium, tmp_path: Path):
    runs = [make_run(tmp_path / name) for name in ("first", "second", "third")]
    for k, run in enumerate(runs):
        text = (run / "evaluation.json").read_text()
        (run / "evaluation.json").write_text(
            text.replace('"energy_mae": 0.1,', f'"energy_mae": {(0.3, 12.1, 0.2)[k]},')
        )
    with watched(chromium) as seen:
        seen.open(write_comparison(runs))
        table = seen.page.locator("table", has_text="Results on validation: val_id")

        def names() -> list[str]:
            return [text.split("/")[0] for text in table.locator("tbody th").all_text_contents()]

        head = table.locator("th", has_text="energy MAE [eV]")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert names() == ["third", "first", "second"]
        head.get_by_role("button").press("Enter")
        assert names() == ["second", "first", "third"]
    assert seen.problems == []


def test_print_shows_pictures_and_no_controls(chromium, report: Path):
    with watched(chromium) as seen:
        seen.open(report)
        seen.page.locator("button[data-view=vector_error-0]").click()
        seen.page.locator(".status", has_text="13 atoms").wait_for()
        seen.page.emulate_media(media="print")
        assert seen.page.locator("#structures figure svg").first.is_visible()
        assert not seen.page.locator(".stage").is_visible()
        assert not seen.page.get_by_role("navigation").is_visible()
        assert not seen.page.locator("button[data-view=vector_error-0]").is_visible()
