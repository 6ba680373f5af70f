"""`equicat bench md`: the parts of a step add up, and methods that were timed are as before."""

import json

from equicat.bench.md import MDConfig, _copper, md, md_text
from equicat.cli.main import main
from equicat.interfaces.ase import Calculator
from equicat.models.potential import Potential


def test_parts_of_a_step_add_up():
    methods = Potential.forward, Calculator.calculate
    results = md(MDConfig(atoms=(13,), steps=3, threads=1))
    assert (Potential.forward, Calculator.calculate) == methods
    (row,) = results["rows"]
    assert row["n_atoms"] == len(_copper(13)) == 17
    parts = row["network_ms"] + row["lists_and_transfers_ms"] + row["ase_ms"]
    assert abs(parts - row["step_ms"]) < 1e-9 * row["step_ms"]
    assert 0 < row["network_ms"] < row["step_ms"]
    assert f"{row['step_ms']:.2f}" in md_text(results)


def test_sizes_are_about_what_was_asked_for():
    for n in (36, 50, 100, 150, 1000):
        assert abs(len(_copper(n)) - n) < 0.3 * n


def test_command_writes_json(tmp_path, capsys):
    out = tmp_path / "md.json"
    assert main(["bench", "md", "--atoms", "[13]", "--steps", "2", "--threads", "1", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["rows"][0]["step_ms"] > 0
    assert "µs an atom" in capsys.readouterr().out
