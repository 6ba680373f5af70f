"""`equicat bench`: what it measures is real, what is compared agrees, and what fails says so."""

import dataclasses
import json
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from ase.build import fcc111

from equicat.bench import process as bench_process
from equicat.bench import speed as bench
from equicat.bench.peers import worker
from equicat.bench.process import Contestant, Failed, Process
from equicat.bench.report import scaling_text, speed_figure, speed_text
from equicat.bench.scaling import copper, fit, scaling
from equicat.bench.speed import AGREEMENT, BenchConfig, _compare, contestants, ratios, speed
from equicat.cli.main import main
from equicat.errors import InputError

ALONE = BenchConfig(threads=1, repeats=2, peer=False, progress=False)
TINY = {"layers": 2, "l_max": 1, "scalars": 8, "tensors": 4, "width": 8}


@pytest.fixture
def tiny(monkeypatch):
    """A small model and two small slabs."""
    slabs = [fcc111("Cu", (2, 2, 3), vacuum=6.0) for _ in range(2)]
    for k, atoms in enumerate(slabs):
        atoms.rattle(0.1, seed=k)
        atoms.pbc = True
    monkeypatch.setattr(bench, "SIZES", {"small": TINY})
    monkeypatch.setattr(bench, "slabs", lambda n: slabs)
    monkeypatch.setattr("equicat.bench.scaling.SIZES", {"small": TINY})
    return slabs


def test_speed_alone(tiny, tmp_path):
    results = speed(ALONE, ["small"])
    size = results["sizes"]["small"]
    rows = size["contestants"]
    assert set(rows) == {"equicat", "equicat, operators", "equicat, operators, recomputing"}
    assert size["n_atoms"] == 24
    assert rows["equicat"]["n_edges"] == size["n_edges"] > 24 * 20
    for row in rows.values():
        assert len(row["inference_all_s"]) == len(row["training_all_s"]) == 2
        assert all(0 < row[f"{what}_s"] < 60 for what in ("inference", "training"))  # how long is not for a test
        assert row["training_memory"]["peak_gb"] >= row["training_memory"]["before_gb"] > 0.05
        assert row["forces_difference"] < 1e-6, "neither kernels nor recomputing change anything"
    assert size["limits"]["inference_of_matmul"] > 0
    assert size["limits"]["training_gflop"] > 2 * size["limits"]["inference_gflop"] > 0
    text = speed_text(results)
    assert "24 atoms" in text
    for name, row in rows.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
        shown = [float(value) for value in line.removeprefix(name).split()[:2]]
        assert shown == pytest.approx([row["inference_s"], row["training_s"]], rel=0.006), "three digits of each"
    speed_figure(results, tmp_path / "speed.svg")
    assert "equicat, operators" in (tmp_path / "speed.svg").read_text() or (tmp_path / "speed.svg").stat().st_size > 1e4
    json.dumps(results)


CROWDED = """
import json, pathlib, sys
marker, full = pathlib.Path(sys.argv[1]), False
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "start" and not marker.exists():
        marker.touch()
        full = True
    answer = {"peak_gb": 1.0} if request["do"] == "peak" else {} if request["do"] == "start" else 0.5
    print(json.dumps({"failed": "OutOfMemoryError: out of memory"} if full else {"answer": answer}), flush=True)
"""
"""A contestant that finds no memory when it is started for the first time."""


def test_on_a_gpu_contestants_start_side_by_side_and_again_where_memory_was_short(tiny, tmp_path):
    bench.write_systems(tmp_path / "systems.npz", tiny)
    requests = bench.Requests(ALONE, TINY, ["Cu"], None, tmp_path / "systems.npz")
    crowded = (sys.executable, "-c", CROWDED, str(tmp_path / "marker"))
    ways = [
        Contestant("equicat", ours=True),
        Contestant("crowded", command=crowded),
        Contestant("bad", command=(sys.executable, "-c", "")),
    ]
    with ExitStack() as stack:
        rows, running = bench._side_by_side(ways, requests, tmp_path, stack)
        times = bench.in_turn(running, "inference", ALONE, "")
    assert set(running) == set(times) == {"equicat", "crowded"}
    assert times["crowded"] == [0.5, 0.5]
    assert rows["crowded"]["inference_memory"] == {"peak_gb": 1.0}
    assert "failed" not in rows["crowded"], "it had the memory for itself"
    assert rows["equicat"]["training_memory"]["peak_gb"] >= rows["equicat"]["inference_memory"]["peak_gb"] > 0.05
    assert rows["bad"]["failed"].startswith("its process ended with status 0")


def test_the_peers_program_is_there_and_says_what_it_misses():
    """The program finds our own files; only the peer's package may be missing."""
    found = subprocess.run([sys.executable, str(bench_process.PEER_PROGRAM)], input="", capture_output=True, text=True)
    assert found.returncode == 0 or "No module named 'allegro'" in found.stderr


def test_slabs_are_as_many_as_asked_for():
    assert [len(a) for a in bench.slabs(11)] == [38] * 11
    metals = [a.get_chemical_symbols()[0] for a in bench.slabs(11)]
    assert metals == [*bench.METALS, *bench.METALS[:3]]


def test_scaling_alone(tiny, tmp_path, capsys):
    files = ["--json", str(tmp_path / "s.json"), "--figure", str(tmp_path / "s.png")]
    options = ["--peer", "false", "--threads", "1", "--repeats", "1", "--progress", "false"]
    assert main(["bench", "scaling", "--atoms", "[30, 120]", "--systems", "[slab]", *options, *files]) == 0
    saved = json.loads((tmp_path / "s.json").read_text())
    (series,) = saved["series"]
    assert [p["n_atoms"] for p in series["points"]] == [len(copper("slab", n)) for n in (30, 120)]
    assert all(p["inference_s"] > 0 and p["neighbors_s"] > 0 for p in series["points"])
    assert scaling_text(saved) in capsys.readouterr().out
    assert (tmp_path / "s.png").stat().st_size > 1000


def test_a_size_that_memory_would_not_hold_is_not_tried(tiny, monkeypatch):
    monkeypatch.setattr("equicat.bench.scaling.available_gb", lambda device: 0.0)
    monkeypatch.setattr("equicat.bench.scaling._expected_gb", lambda points, n: 3.0 * len(points))
    (series,) = scaling(BenchConfig(threads=1, repeats=1, peer=False, progress=False), [30, 120], ["bulk"])["series"]
    assert "inference_s" in series["points"][0]
    assert series["points"][1]["failed"] == "would take about 3 GB"
    assert "would take about 3 GB" in scaling_text({"series": [series]})


def test_fit_of_a_line():
    points = [{"n_atoms": n, "peak_gb": 0.5 + 2e-6 * n, "inference_s": 1e-4 * n} for n in (300, 1000, 10000)]
    points[2]["inference_s"] *= 1.1
    found = fit([*points, {"n_atoms": 30000, "failed": "no memory"}])
    assert found["kb_per_atom"] == pytest.approx(2.0)
    assert found["time_per_atom_spread"] == pytest.approx(1.1)


@pytest.mark.parametrize(("kind", "n"), [("bulk", 300), ("slab", 300), ("bulk", 1000)])
def test_copper_has_about_that_many_atoms(kind, n):
    assert abs(len(copper(kind, n)) - n) < 0.3 * n
    with pytest.raises(InputError, match="no system 'wire'; there are bulk and slab"):
        copper("wire", n)


def test_contestants_that_differ_are_not_compared(tmp_path):
    energy, forces = np.array([1.0, 2.0]), np.ones((3, 3))
    np.savez(tmp_path / "a.npz", energy=energy, forces=forces)
    np.savez(tmp_path / "b.npz", energy=energy, forces=forces * (1 + 3 * AGREEMENT))
    with pytest.raises(InputError, match=r"b does not compute what equicat computes: .* nothing was measured"):
        _compare({"a": tmp_path / "a.npz", "b": tmp_path / "b.npz"}, {})
    _compare({"a": tmp_path / "a.npz", "b": tmp_path / "b.npz"}, {"b": 4 * AGREEMENT})


def test_a_gpu_has_contestants_of_its_own():
    ours = contestants("cuda", peer=False)
    assert contestants("cpu", peer=False) == [way for way in ours if way.cuda_graphs and not way.tf32]
    assert [way.name for way in ours if way.tf32] == ["equicat, TF32"]
    assert [way.name for way in ours if not way.cuda_graphs] == ["equicat, without CUDA graphs"]


def test_a_device_that_is_not_there(tiny, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    monkeypatch.setattr(bench, "contestants", lambda *arguments: [Contestant("equicat", ours=True)])
    with pytest.raises(InputError, match="equicat cannot be run on cuda: "):
        speed(dataclasses.replace(ALONE, device="cuda"), ["small"])


def test_ratios_take_the_best_of_the_peer():
    memory = {"inference_memory": {"peak_gb": 1.0}, "training_memory": {"peak_gb": 1.0}}
    rows = {
        "equicat": {"inference_s": 1.0, "training_s": 2.0, **memory},
        "peer, eager": {"inference_s": 9.0, "training_s": 30.0, **memory},
        "peer, exported": {"inference_s": 6.0, **memory},
    }
    found = ratios(rows)
    assert found["inference"] == 6.0
    assert found["training"] == 15.0


def test_failures_come_back_as_text():
    with Process(Contestant("equicat", ours=True), 1, None) as process:
        with pytest.raises(Failed, match="KeyError"):
            process.ask("start", threads=1)
        with pytest.raises(Failed, match="KeyError: 'dance'"):
            process.ask("dance")
        process.process.kill()
        with pytest.raises(Failed, match=r"ended with status -9 \(out of memory\?\)"):
            process.ask("seconds", what="inference")


def test_bad_input(tiny, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no model size 'huge'; there are small"):
        speed(ALONE, ["huge"])
    with pytest.raises(InputError, match=r"--peer_python .*give a Python interpreter"):
        Process(Contestant("nequip-allegro, eager"), 1, str(tmp_path / "python"))
    monkeypatch.setattr(bench_process, "PEER_PROGRAM", tmp_path / "missing.py")
    config = BenchConfig(threads=1, peer_python=sys.executable, progress=False)
    with pytest.raises(InputError, match=r"nequip-allegro cannot be run .* or --peer false"):
        speed(config, ["small"])


def test_limits_are_what_a_product_and_a_copy_take():
    found = worker.limits("cpu")
    assert 0.1 < found["matmul_gflops"] < 1e5
    assert 0.01 < found["copy_gbs"] < 1e4
