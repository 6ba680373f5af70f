"""The page of adsorption energies in a real browser: its table sorts, and its structures turn."""

from pathlib import Path

import pytest
from ase.calculators.emt import EMT
from chromium import browser, colours, watched

import equicat
from equicat.adsorption.energies import AdsorptionConfig
from equicat.relaxation.models import CalculatorForces

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adsorption") / "out"
    config = AdsorptionConfig(sites=("fcc", "ontop"), max_steps=5)
    forces = CalculatorForces(EMT, "adsorption")
    equicat.adsorption_energies("Cu(111) 2x2x3", ["C", "O"], forces, config, out=out, progress=False)
    return out / "page.html"


def test_it_sorts_and_turns(page: Path):
    with browser() as chromium, watched(chromium) as seen:
        seen.open(page)
        energies = seen.page.locator("#structures tbody td:nth-child(4)")
        before = energies.all_text_contents()
        seen.page.get_by_role("columnheader", name="energy").get_by_role("button").click()
        after = energies.all_text_contents()
        assert sorted(before) == sorted(after)
        numbers = [float(text.replace("−", "-")) for text in after]
        assert numbers == sorted(numbers)
        assert len(numbers) == 4
        seen.page.locator("button[data-view]").first.click()
        seen.page.locator(".status", has_text="relaxed, 13 atoms").wait_for()
        canvas = seen.page.locator(".canvas")
        assert colours(canvas) > 20
        relaxed = canvas.screenshot()
        seen.page.get_by_role("radio", name="as placed").check()
        assert canvas.screenshot() != relaxed
        assert seen.problems == []
