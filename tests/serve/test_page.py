"""The page in a real browser: a job from the form to its end, the table, the 3D view, two browsers, bad input."""

import re

import pytest
from ase.build import bulk, fcc111
from chromium import browser, colours
from places import FIXTURES
from serving import Server

pytest.importorskip("uvicorn", reason="equicat[serve] is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory):
    server = Server(FIXTURES / "runs_b139b12" / "allegro", tmp_path_factory.mktemp("page") / "screenings")
    yield server
    server.stop()


@pytest.fixture
def page(chromium, server):
    """The page in a browser of its own; errors on its console fail the test, but for refusals that were asked for."""
    page, errors = chromium.new_context().new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.address)
    yield page
    page.context.close()
    assert [error for error in errors if "status of 422" not in error] == []


def column(page, place):
    return page.locator(f"#rows tbody td:nth-child({place})").all_inner_texts()


def test_a_job_runs_to_its_end(page, chromium, server):
    expect(page.locator("#no-jobs")).to_be_visible()
    expect(page.locator("#submit")).to_be_disabled()
    page.fill("#size-a", "2")
    page.fill("#size-b", "2")
    page.fill("#size-layers", "3")
    page.locator("#adsorbates input[value=CO]").focus()
    page.keyboard.press("Space")
    expect(page.locator("#verdict")).to_contain_text("CO on Cu(111) 2x2x3: 4 placements, 5 relaxations in all")
    page.click("summary:has-text('Settings')")
    page.fill("#max_steps", "40")
    expect(page.locator("#submit")).to_be_enabled()
    page.click("#submit")
    expect(page.locator("#job-title")).to_have_text("1: CO on Cu(111) 2x2x3")

    other = chromium.new_context().new_page()
    other.goto(server.address)
    expect(other.locator("#jobs li a")).to_have_text("CO on Cu(111) 2x2x3")
    for watched in (page, other):
        expect(watched.locator("#jobs .state")).to_have_text("done", timeout=60_000)
    other.context.close()

    expect(page.locator("#job-state")).to_contain_text("Done:")
    rows = server.job(1)["rows"]
    expect(page.locator("#rows tbody tr")).to_have_count(len(rows))
    energies = page.locator("#rows thead button", has_text="energy")
    energies.click()
    assert page.locator("#rows th").nth(1).get_attribute("aria-sort") == "ascending"
    upward = [float(text.replace("−", "-")) for text in column(page, 2)]
    assert upward == sorted(round(row["energy"], 3) for row in rows)
    energies.click()
    assert [float(text.replace("−", "-")) for text in column(page, 2)] == upward[::-1]

    page.locator("#rows tbody button").first.click()
    expect(page.locator("#job-view .status")).to_contain_text("14 atoms")
    assert colours(page.locator("#job-view canvas").first) > 50
    with page.expect_download() as download:
        page.click("text=table (CSV)")
    assert download.value.suggested_filename == "job-1-table.csv"

    with page.expect_popup() as opened:
        page.get_by_role("link", name="page").click()
    report = opened.value  # apart from this page: its scripts run, and may ask for nothing
    report.locator("button[data-view]").first.click()
    report.locator(".status", has_text="14 atoms").wait_for(timeout=20_000)
    assert colours(report.locator(".canvas")) > 20
    report.close()

    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#job-actions button:has-text('Remove')")
    expect(page.locator("#no-jobs")).to_be_visible()


def test_bad_input_is_said_and_good_input_goes_on(page, tmp_path):
    page.click("text=from a file")
    (tmp_path / "slab.pkl").write_bytes(b"\x80\x04K\x01.")
    page.set_input_files("#slab-file", tmp_path / "slab.pkl")
    expect(page.locator("#slab-file-said")).to_contain_text("slab.pkl: its format is not known")
    page.check("#adsorbates input[value=O]", force=True)
    expect(page.locator("#verdict")).to_have_text("Upload a slab.")
    fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True).write(tmp_path / "POSCAR", format="vasp")
    page.set_input_files("#slab-file", tmp_path / "POSCAR")
    expect(page.locator("#verdict")).to_contain_text("O on POSCAR: 4 placements")
    page.click("summary:has-text('Settings')")
    page.fill("#max_steps", "100000")
    expect(page.locator("#verdict .error")).to_have_text(
        re.compile("max_steps is 100000; it must be a whole number .*")
    )
    expect(page.locator("#submit")).to_be_disabled()
    page.fill("#max_steps", "10")
    expect(page.locator("#submit")).to_be_enabled()


def test_a_bulk_is_uploaded_and_cut(page, tmp_path):
    page.click("text=of a bulk file")
    page.check("#adsorbates input[value=O]", force=True)
    expect(page.locator("#verdict")).to_have_text("Upload a bulk.")
    expect(page.locator("#bulk")).to_be_hidden()
    bulk("Cu", cubic=True).write(tmp_path / "cu.cif")
    page.set_input_files("#bulk-file", tmp_path / "cu.cif")
    page.fill("#size-a", "2")
    expect(page.locator("#verdict")).to_contain_text("O on cu.cif(111) 2x3x4")
    page.click("text=of an element")
    expect(page.locator("#verdict")).to_contain_text("O on Cu(111) 2x3x4")


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_browser_without_the_key_is_told_what_to_do(chromium, server):
    page = chromium.new_context().new_page()
    assert page.goto(f"{server.base}/").status == 403
    assert "Open the address that `equicat serve` printed" in page.inner_text("body")
    page.context.close()
