"""`equicat serve` killed in mid-job and started again: the results are those of an undisturbed run."""

import json
import signal

import pytest
from places import FIXTURES
from serving import Server

import equicat
from equicat.adsorption.energies import AdsorptionConfig
from equicat.cli import main as cli

pytest.importorskip("uvicorn", reason="equicat[serve] is not installed")

RUN = FIXTURES / "runs_b139b12" / "allegro"
JOB = {"slab": "Cu(111) 3x3x4", "adsorbates": ["CO", "O"], "n_random": 8, "fmax": 0.005, "max_steps": 40}


def in_the_middle(job):
    return job["state"] == "running" and 3 <= job["n_finished"] < job["n_systems"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_killed_server_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "screenings"
    server = Server(RUN, folder)
    first = json.loads(server.ask("POST", "/api/jobs", JOB))["id"]
    server.ask("POST", "/api/jobs", {**JOB, "adsorbates": ["O"], "n_random": 0, "max_steps": 2})
    before = server.wait(first, in_the_middle)
    server.stop(signal.SIGKILL)

    server = Server(RUN, folder)  # begins once the job's process has noticed, and has given the lock back
    after = server.job(first)
    assert after["n_finished"] >= before["n_finished"]
    assert after["started"] == before["started"]
    server.wait(first, in_the_middle if in_the_middle(after) else lambda job: True)
    server.stop(signal.SIGINT)  # a server that is stopped leaves its job as well

    server = Server(RUN, folder)
    server.wait(first, lambda job: job["state"] == "done")
    server.wait(2, lambda job: job["state"] == "done")
    table, structures = (server.ask("GET", f"/api/jobs/1/{name}") for name in ("table.csv", "structures.extxyz"))
    server.stop()

    config = AdsorptionConfig(n_random=8, fmax=0.005, max_steps=40)
    equicat.adsorption_energies(JOB["slab"], ["CO", "O"], RUN, config, out=tmp_path / "alone", progress=False)
    assert table == (tmp_path / "alone/table.csv").read_bytes()
    assert structures == (tmp_path / "alone/structures.extxyz").read_bytes()


def test_bad_starts_are_one_line(tmp_path, capsys):
    assert cli.main(["serve", str(tmp_path), "--folder", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    (tmp_path / "thesis.tex").touch()
    assert cli.main(["serve", str(RUN), "--folder", str(tmp_path)]) == 2
    assert "holds other files (thesis.tex)" in capsys.readouterr().err
