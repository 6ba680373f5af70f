"""The table of metrics: which exist for which task, how they are written, and where they appear."""

import math

import pytest
import torch

from equicat.errors import InputError
from equicat.tasks import metrics
from equicat.tasks.metrics import Mean
from equicat.tasks.tables import METRICS, amount, format_table, metrics_of, metrics_shown


def names(quantities: tuple[str, ...]) -> set[str]:
    return {metric.name for metric in metrics_of(quantities)}


def test_names_that_scripts_outside_use_are_there() -> None:
    assert {
        "energy_mae",
        "energy_within_threshold",
        "forces_mae",
        "forces_cosine_similarity",
        "energy_forces_within_threshold",
        "positions_mae",
        "positions_average_distance_within_threshold",
        "average_force_below_threshold",
    } <= set(METRICS)


def test_a_task_has_the_metrics_of_what_it_predicts() -> None:
    s2ef, is2re, is2rs = names(("energy", "forces")), names(("energy",)), names(("displacements",))
    assert "energy_forces_within_threshold" in s2ef - is2re - names(("forces",))
    assert is2re < s2ef
    assert is2rs.isdisjoint(s2ef)
    assert names(("energy", "displacements")) == is2re | is2rs
    assert names(("energy", "forces", "stress")) - s2ef == {"stress_mae", "stress_rmse"}


def test_every_function_of_metrics_is_in_the_table() -> None:
    """One that returns a Mean and is in no row would be computed nowhere."""
    functions = {
        name for name, value in vars(metrics).items() if getattr(value, "__annotations__", {}).get("return") is Mean
    }
    used = {metric.function.__name__ for metric in METRICS.values()}
    assert {name for name in functions if not name.startswith("_")} == used


def test_every_place_has_metrics_and_no_other_place_is_named() -> None:
    places = {word for metric in METRICS.values() for word in metric.shown.split()}
    assert places == {"table", "log", "bars", "headline"}
    assert [m.name for m in metrics_shown("headline")] == ["energy_mae", "forces_mae", "stress_mae", "positions_mae"]


def test_numbers_are_written_with_their_unit_and_decimals() -> None:
    assert METRICS["energy_within_threshold"].text(0.05) == "5.00"
    assert METRICS["energy_within_threshold"].heading == "EwT [%]"
    assert METRICS["forces_mae"].text(0.02114) == "0.0211"
    assert METRICS["forces_cosine_similarity"].heading == "force cos"
    assert METRICS["forces_mae"].text(None) == "–"


def test_a_text_table() -> None:
    rows = {
        "allegro": {"energy_mae": 0.12345, "energy_within_threshold": 0.05, "forces_mae": 0.0211},
        "mean energy, F = 0": {"energy_mae": 1.5, "energy_within_threshold": 0.0, "forces_mae": math.nan},
        "energies only": {"energy_mae": 0.5},
    }
    lines = format_table(rows, energy_reference="adsorption").splitlines()
    assert lines[0].split("  ")[-3:] == ["energy MAE [eV]", "EwT [%]", "force MAE [eV/Å]"]
    assert lines[2].split() == ["allegro", "0.1235", "5.00", "0.0211"]
    assert lines[3].split()[-3:] == ["1.5000", "0.00", "nan"]
    assert lines[4].split()[-2:] == ["–", "–"]
    assert lines[5].startswith("Energies: adsorption")
    assert len({len(line) for line in lines[:5]}) == 1, "columns line up"
    assert "EFwT" in format_table(rows, ["energy_forces_within_threshold"])
    with pytest.raises(InputError, match=r"force_mae.*did you mean 'forces_mae'"):
        format_table(rows, ["force_mae"])


def test_data_are_counted_in_systems() -> None:
    assert amount(23, 1) == "23 frames of 1 system"
    assert amount(6, 6) == "6 systems"
    assert amount(1, 1) == "1 system"
    assert amount(25_000, 9_000) == "25,000 frames of 9,000 systems"


def test_a_mean_of_nothing_is_not_a_number() -> None:
    assert math.isnan(Mean.of(torch.zeros(0)).value)
