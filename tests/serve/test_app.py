"""Answers of the page's addresses; EMT stands in for a model, and jobs are done in this process."""

import csv
import io

import pytest

pytest.importorskip("starlette", reason="equicat[serve] is not installed")

from ase.build import fcc111, molecule
from serving import BASE, KEY, SMALL, Serving
from starlette.testclient import TestClient

import equicat
from equicat import InputError
from equicat.adsorption.energies import AdsorptionConfig
from equicat.relaxation.parts import Parts
from equicat.serve import progress
from equicat.serve.app import MAX_REQUEST, make_app

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def extxyz(atoms, folder):
    atoms.write(folder / "structure.extxyz")
    return (folder / "structure.extxyz").read_bytes()


def test_a_job_from_the_form_to_the_files(client, serving, tmp_path):
    checked = client.post("/api/check", json=SMALL).json()
    assert checked["title"] == "O on Cu(111) 2x2x3"
    assert checked["sites"] == ["ontop", "bridge", "fcc", "hcp"]
    assert (checked["n_systems"], checked["n_placements"]) == (5, 4)
    assert client.get("/api/jobs").json() == {"jobs": []}  # checking queues nothing
    number = client.post("/api/jobs", json=SMALL).json()["id"]
    (waiting,) = client.get("/api/jobs").json()["jobs"]
    assert (waiting["state"], waiting["n_finished"], waiting["n_systems"]) == ("queued", 0, 5)
    assert client.get(f"/api/jobs/{number}/table.csv").status_code == 404
    serving.do(number)

    job = client.get(f"/api/jobs/{number}").json()
    alone = equicat.adsorption_energies(
        SMALL["slab"], ["O"], serving.model.forces, AdsorptionConfig(fmax=0.1), out=tmp_path / "alone", progress=False
    )
    assert (job["state"], job["n_finished"]) == ("done", 5)
    assert [row["energy"] for row in job["rows"]] == pytest.approx([row.energy for row in alone.rows], abs=1e-5)
    assert [row["relaxed_site"] for row in job["rows"]] == [row.relaxed_site for row in alone.rows]
    assert job["reference"] == list(alone.reference)
    assert job["warnings"] == list(alone.warnings)

    table = client.get(f"/api/jobs/{number}/table.csv")
    assert table.content == (tmp_path / "alone/table.csv").read_bytes()
    assert 'filename="job-1-table.csv"' in table.headers["content-disposition"]
    assert len(list(csv.DictReader(io.StringIO(table.text)))) == len(job["rows"])
    structures = client.get(f"/api/jobs/{number}/structures.extxyz")
    assert structures.content == (tmp_path / "alone/structures.extxyz").read_bytes()
    page = client.get(f"/api/jobs/{number}/page.html")
    assert "O on Cu(111) 2x2x3" in page.text
    assert page.headers["content-security-policy"].startswith("sandbox allow-scripts allow-downloads;")
    view = client.get(f"/api/jobs/{number}/systems/{job['rows'][0]['system']}").json()
    assert [state["title"] for state in view["states"]] == ["relaxed", "initial"]
    assert len(view["kinds"]) == 13


def test_a_job_is_shown_while_it_runs(client, serving, monkeypatch):
    number = serving.add(n_random=4)
    whole = Parts.append
    kept = []

    def append(parts, record):
        if len(kept) == 5:
            raise InputError("killed")
        kept.append(record.number)
        whole(parts, record)

    monkeypatch.setattr(Parts, "append", append)
    with pytest.raises(InputError, match="killed"):
        serving.do(number)
    running = client.get(f"/api/jobs/{number}").json()
    assert (running["state"], running["n_finished"]) == ("running", 5)
    assert [row["system"] for row in running["rows"]] == sorted(n for n in kept if n > 0)
    assert all((row["energy"] is not None) == (0 in kept) for row in running["rows"])
    view = client.get(f"/api/jobs/{number}/systems/{running['rows'][0]['system']}").json()
    assert [state["title"] for state in view["states"]] == ["relaxed", "initial"]
    unfinished = next(k for k in range(running["n_systems"]) if k not in kept)
    view = client.get(f"/api/jobs/{number}/systems/{unfinished}").json()
    assert [state["title"] for state in view["states"]] == ["structure"]

    monkeypatch.setattr(Parts, "append", whole)
    serving.do(number)
    done = {row["system"]: row for row in client.get(f"/api/jobs/{number}").json()["rows"]}
    if 0 in kept:
        before = {row["system"]: row["energy"] for row in running["rows"] if row["system"] in done}
        assert before == pytest.approx({system: done[system]["energy"] for system in before}, abs=1e-5)
        assert before


def test_energies_while_it_runs_are_those_of_the_end_also_with_gases(tmp_path, monkeypatch):
    """Two adsorbates on one slab, and a model of total energies, whose gases are relaxed as well."""
    serving = Serving.of(tmp_path / "total", "total")
    number = serving.add(adsorbates=["O+H", "H"], sites=["fcc"])
    monkeypatch.setattr(Parts, "remove", lambda parts: None)
    serving.do(number)
    folder, systems = serving.home.job(number), serving.jobs.systems(number)
    assert [system["kind"] for system in systems[:4]] == ["slab", "gas", "gas", "placement"]
    live = {row["system"]: row["energy"] for row in progress.live_rows(folder, systems, False)}
    rows = progress.result_rows(folder, systems)
    assert rows
    assert {row["adsorbate"] for row in rows} == {"O+H", "H"}
    assert [live[row["system"]] for row in rows] == pytest.approx([row["energy"] for row in rows], abs=1e-5)


def test_a_server_may_be_started_with_another_model(serving):
    """A job that waits is done with the new model; one that was begun with the old one says what is wrong."""
    waiting, begun = serving.add(sites=["fcc"], max_steps=1), serving.add(sites=["hcp"], max_steps=1)
    serving.model.forces.energy_reference = "total"
    serving.do(waiting)
    folder, systems = serving.home.job(waiting), serving.jobs.systems(waiting)
    assert [system["kind"] for system in systems] == ["slab", "gas", "placement"]
    assert serving.jobs.get(waiting).n_systems == 3
    (row,) = progress.result_rows(folder, systems)
    assert len(progress.structure_of(folder, row["system"])) == 13
    serving.do(begun)
    serving.jobs.end(begun, "failed")
    serving.model.forces = Serving.of(serving.home.path.parent / "other").model.forces
    (serving.home.job(begun) / "screening" / "table.csv").unlink()
    with serving.jobs.open() as connection:
        connection.execute("UPDATE jobs SET state = 'queued' WHERE id = ?", (begun,))
    with pytest.raises(InputError, match="was begun with other structures"):
        serving.do(begun)


def test_uploads_become_a_job(client, serving, tmp_path):
    slab = extxyz(fcc111("Cu", (2, 2, 3), vacuum=8.0, periodic=True), tmp_path)
    slab_file = client.post("/api/uploads?kind=slab&name=my slab.xyz", content=slab).json()
    oxygen = client.post("/api/uploads?kind=adsorbate&name=O2.xyz", content=extxyz(molecule("O2"), tmp_path)).json()
    assert slab_file["label"] == "my slab.xyz"
    asked = {"slab_file": slab_file["token"], "adsorbate_files": [oxygen["token"]], "sites": ["fcc"], "max_steps": 1}
    number = client.post("/api/jobs", json=asked).json()["id"]
    serving.do(number)
    job = client.get(f"/api/jobs/{number}").json()
    assert job["title"] == "O2 on my slab.xyz"
    assert set(job["labels"].values()) == {"my slab.xyz", "O2.xyz"}
    assert {row["adsorbate"] for row in job["rows"]} == {"O2"}


@pytest.mark.parametrize(
    ("address", "body", "status", "line"),
    [
        ("/api/check", b"{", 422, "the request is no JSON"),
        ("/api/check", b"[1]", 422, "the request is no JSON object"),
        ("/api/check", b"\xff", 422, "the request is no JSON"),
        ("/api/check", b"[" * 50000, 422, "the request is no JSON"),
        ("/api/check", b"0" * (MAX_REQUEST + 1), 413, "this is larger than 0.1 MB"),
        ("/api/jobs", b'{"slab": "Cu(111) 2x2x3"}', 422, "choose an adsorbate"),
        ("/api/jobs", b'{"slab": "Cu(111) 2x2x3", "adsorbates": ["O"], "sites": ["x"]}', 422, "no site"),
        ("/api/uploads?kind=virus&name=x", b"x", 422, "kind is virus; it must be one of slab, bulk, adsorbate"),
        ("/api/uploads?kind=slab&name=x", b"x", 422, "x: its format is not known"),
        ("/api/uploads?kind=slab&name=x.xyz", b"0" * 10_000_001, 413, "this is larger than 10 MB"),
        ("/api/jobs/1/cancel", b"", 404, "there is no job 1"),
        ("/api/jobs/99999999999999999999/again", b"", 404, "there is no job"),
    ],
)
def test_bad_requests_are_one_line(client, serving, address, body, status, line):
    answer = client.post(address, content=body)
    assert answer.status_code == status
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert serving.jobs.all() == []


def test_a_request_that_is_too_much_is_refused(client, serving, monkeypatch):
    monkeypatch.setattr("equicat.serve.check.MAX_PLACEMENTS", 3)
    assert "4 placements, and at most 3 are one job" in client.post("/api/jobs", json=SMALL).json()["error"]
    monkeypatch.setattr("equicat.serve.check.MAX_ATOMS", 10)
    assert "the slab has 12 atoms; at most 10" in client.post("/api/jobs", json=SMALL).json()["error"]


def test_two_browsers_see_the_same_queue(client, serving):
    other = TestClient(
        make_app(serving.home, serving.model, serving.runner, KEY),
        base_url=BASE,
        client=("127.0.0.1", 50001),
        headers={"Origin": BASE},
    )
    other.get("/", params={"key": KEY})
    first = client.post("/api/jobs", json=SMALL).json()["id"]
    second = other.post("/api/jobs", json={**SMALL, "adsorbates": ["H"]}).json()["id"]
    assert client.get("/api/jobs").json() == other.get("/api/jobs").json()
    assert [job["id"] for job in client.get("/api/jobs").json()["jobs"]] == [second, first]
    assert other.post(f"/api/jobs/{first}/cancel").status_code == 200
    assert client.post(f"/api/jobs/{first}/cancel").json()["error"] == "job 1 has ended already"
    assert client.delete(f"/api/jobs/{first}").status_code == 200
    assert other.get(f"/api/jobs/{first}").json()["error"] == "there is no job 1; it may have been removed"


def test_a_removed_job_leaves_nothing(client, serving):
    number = client.post("/api/jobs", json={**SMALL, "max_steps": 1, "sites": ["fcc"]}).json()["id"]
    serving.do(number)
    assert serving.home.job(number).is_dir()
    assert client.delete(f"/api/jobs/{number}").status_code == 200
    assert not serving.home.job(number).exists()


def test_a_job_goes_on_after_it_was_cancelled(client, serving):
    number = client.post("/api/jobs", json=SMALL).json()["id"]
    client.post(f"/api/jobs/{number}/cancel")
    assert client.get(f"/api/jobs/{number}").json()["state"] == "cancelled"
    assert client.post(f"/api/jobs/{number}/again").status_code == 200
    assert client.get(f"/api/jobs/{number}").json()["state"] == "queued"


@pytest.mark.parametrize("name", ["serve.db", "key", "../key", "%2e%2e/key", "plan.json"])
def test_only_results_are_files(client, serving, name):
    number = client.post("/api/jobs", json=SMALL).json()["id"]
    assert client.get(f"/api/jobs/{number}/{name}").status_code == 404
    assert client.get(f"/assets/{name}").status_code == 404


def test_the_page_offers_what_the_model_knows(client):
    page = client.get("/").text
    assert '<input type="checkbox" value="CO">' in page
    assert "<option>Cu</option>" in page
    for name in ("base.css", "page.css", "page.js", "viewer.css", "viewer.js", "3Dmol.js"):
        assert f"/assets/{name}" in page
        assert client.get(f"/assets/{name}").status_code == 200
    assert "http://" not in page  # nothing is loaded from elsewhere
    assert "https://" not in page


def test_all_of_it_lies_in_the_folder(client, serving, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    client.post("/api/uploads?kind=adsorbate&name=..%2F..%2FO2.xyz", content=b"2\n\nO 0 0 0\nO 0 0 1.2\n")
    serving.do(client.post("/api/jobs", json={**SMALL, "max_steps": 1, "sites": ["fcc"]}).json()["id"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "screenings"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
