"""Cells of a study: each is done once, by one of several processes, whatever kills them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT

from equicat import InputError
from equicat.studies.cells import Cell, Plan, claimed, finished, work


def a_plan(out: Path, n: int = 4) -> Plan:
    cells = tuple(Cell("schnet", "s2ef", 16, seed, {"run": {"seed": seed}}, budget="1 epochs") for seed in range(n))
    plan = Plan(out, "table1", "data", "digest", cells)
    plan.write()
    return plan


def counted(cell: Cell, data: Path, folder: Path) -> dict:
    """Does a cell that leaves a mark each time."""
    with (folder / "marks").open("a") as file:
        file.write("x")
    return {"data": str(data)}


def marks(plan: Plan) -> list[int]:
    files = [folder / "marks" for folder in plan.folders.values()]
    return [len(file.read_text()) if file.is_file() else 0 for file in files]


def silent(line: str) -> None:
    pass


def test_every_cell_is_done_once(tmp_path):
    plan = a_plan(tmp_path)
    assert work(plan, counted, silent) == 4
    assert work(plan, counted, silent) == 0
    assert marks(plan) == [1, 1, 1, 1]
    assert [result["seed"] for result in plan.results()] == [0, 1, 2, 3]
    assert plan.results()[0]["data"] == "data"
    assert plan.unfinished() == []


def test_a_larger_plan_keeps_what_is_finished(tmp_path):
    work(a_plan(tmp_path, 2), counted, silent)
    plan = a_plan(tmp_path, 3)
    assert work(plan, counted, silent) == 1
    assert marks(plan) == [1, 1, 1]


def test_a_plan_survives_its_file(tmp_path):
    plan = a_plan(tmp_path)
    assert Plan.read(tmp_path) == plan


@pytest.mark.parametrize("change", [{"config": {"run": {"seed": 7}}}, {"relax": {"fmax": 0.1}}, {"cutoff": 4.0}])
def test_what_changes_a_result_changes_the_name(change):
    cell = Cell("schnet", "s2ef", 16, 0, {"run": {"seed": 0}})
    values = {"model": "schnet", "task": "s2ef", "n_train": 16, "seed": 0, "config": cell.config} | change
    assert Cell(**values).name("digest") != cell.name("digest")
    assert cell.name("other data") != cell.name("digest")


def test_a_failed_cell_says_why_and_does_not_stop_the_others(tmp_path):
    def one_fails(cell: Cell, data: Path, folder: Path) -> dict:
        if cell.seed == 1:
            raise InputError("no validation loss was a number")
        return {}

    plan = a_plan(tmp_path)
    assert work(plan, one_fails, silent) == 4
    assert [r.get("failed") for r in plan.results()] == [None, "no validation loss was a number", None, None]
    assert [r["seed"] for r in finished(plan.results())] == [0, 2, 3]


def test_a_defect_stops_and_leaves_no_result(tmp_path):
    def breaks(cell: Cell, data: Path, folder: Path) -> dict:
        raise RuntimeError("a defect")

    plan = a_plan(tmp_path)
    with pytest.raises(RuntimeError, match="a defect"):
        work(plan, breaks, silent)
    assert len(plan.unfinished()) == 4
    assert work(plan, counted, silent) == 4, "the lock is gone with the exception"


def test_a_held_cell_is_left_to_its_holder(tmp_path):
    plan = a_plan(tmp_path)
    with claimed(plan.folder(plan.cells[2])) as mine:
        assert mine
        assert work(plan, counted, silent) == 3
    assert marks(plan) == [1, 1, 0, 1]
    assert work(plan, counted, silent) == 1


PROGRAM = """
import sys, time
from pathlib import Path
from equicat.studies.cells import Plan, work

def slow(cell, data, folder):
    with (folder / "marks").open("a") as file:
        file.write("x")
    time.sleep(float(sys.argv[2]))
    return {}

work(Plan.read(Path(sys.argv[1])), slow, print)
"""


def start(plan: Plan, seconds: float) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(plan.out), str(seconds)], env=environment)


def test_two_processes_share_the_cells(tmp_path):
    plan = a_plan(tmp_path, 6)
    processes = [start(plan, 0.1) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert marks(plan) == [1] * 6
    assert len(plan.results()) == 6


def test_a_killed_process_repeats_no_finished_cell(tmp_path):
    plan = a_plan(tmp_path, 5)
    process = start(plan, 0.2)
    while len(plan.unfinished()) > 3:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    before = {r["seed"] for r in plan.results()}
    assert 2 <= len(before) < 5
    work(plan, counted, silent)
    assert all(n == 1 for n, cell in zip(marks(plan), plan.cells, strict=True) if cell.seed in before)
    assert plan.unfinished() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"notes.txt": "mine"}, "holds something else than a study; give another folder"),
        ({"study.json": json.dumps({"study": "locality"})}, "holds the study locality; give another folder for table1"),
    ],
)
def test_nothing_else_is_overwritten(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        a_plan(tmp_path)


def test_a_plan_may_be_written_by_several_at_once(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / ".123-study.json").write_text("half of a pl")
    assert work(a_plan(tmp_path), counted, silent) == 4
