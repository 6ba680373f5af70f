"""The queue: what follows what, and what a killed server leaves."""

import sqlite3

import pytest

from equicat import InputError
from equicat.serve.home import Home
from equicat.serve.jobs import Jobs, UnknownJob


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "serve.db")


def add(jobs, n=1):
    return [jobs.add(f"job {k}", {"slab": "Cu(111) 2x2x3"}, [{"kind": "slab"}] * 3) for k in range(n)]


def test_jobs_are_done_in_order(jobs):
    first, second = add(jobs, 2)
    assert [job.id for job in jobs.all()] == [second, first]
    assert jobs.begin().id == first
    jobs.end(first, "failed", "no energy")
    assert (jobs.get(first).state, jobs.get(first).message) == ("failed", "no energy")
    assert jobs.begin().id == second
    jobs.end(second, "done")
    assert jobs.begin() is None
    assert jobs.get(second).n_systems == len(jobs.systems(second)) == 3


def test_the_job_of_a_killed_server_comes_first(jobs):
    first, second = add(jobs, 2)
    jobs.cancel(first)
    assert jobs.begin().id == second
    jobs.again(first)
    started = jobs.get(second).started
    afterwards = Jobs(jobs.database)  # as the next server opens it
    assert afterwards.begin().id == second
    assert afterwards.get(second).started == started


def test_a_cancelled_job_stays_cancelled_whatever_its_process_says(jobs):
    (job,) = add(jobs)
    jobs.begin()
    jobs.cancel(job)
    jobs.end(job, "failed", "its process was ended by SIGKILL")
    assert (jobs.get(job).state, jobs.get(job).message) == ("cancelled", "")
    jobs.again(job)
    assert jobs.begin().id == job


def test_changes_that_make_no_sense_are_refused(jobs):
    (job,) = add(jobs)
    with pytest.raises(InputError, match="job 1 neither failed nor was cancelled"):
        jobs.again(job)
    jobs.begin()
    with pytest.raises(InputError, match="job 1 is running; cancel it first"):
        jobs.remove(job)
    jobs.end(job, "done")
    with pytest.raises(InputError, match="job 1 has ended already"):
        jobs.cancel(job)
    jobs.remove(job)
    for change in (jobs.get, jobs.cancel, jobs.again, jobs.remove):
        with pytest.raises(UnknownJob, match="there is no job 1"):
            change(job)
    assert add(jobs) == [2]  # numbers are not used twice


def test_the_number_of_jobs_is_limited(jobs, monkeypatch):
    monkeypatch.setattr("equicat.serve.jobs.MAX_JOBS", 2)
    add(jobs, 2)
    with pytest.raises(InputError, match="2 jobs already; remove some first"):
        add(jobs)


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "serve.db").write_bytes(b"no database at all, but long enough to look at" * 100)
    with pytest.raises(InputError, match=r"cannot be used \(file is not a database"):
        Jobs(tmp_path / "serve.db")


def test_a_change_that_breaks_off_changes_nothing(jobs):
    (job,) = add(jobs)

    def broken_off():
        with jobs.open() as connection:
            connection.execute("DELETE FROM jobs")
            raise sqlite3.OperationalError("killed")

    with pytest.raises(InputError, match="cannot be used"):
        broken_off()
    assert jobs.get(job).state == "queued"


def test_a_folder_is_for_one_server(tmp_path):
    home = Home(tmp_path / "screenings")
    home.make()
    home.held()
    with pytest.raises(InputError, match="another `equicat serve` works in this folder"):
        home.held(wait=0.0)
    home.make()  # a folder of ours is taken again
    assert home.key() == home.key()
    assert (home.path / "key").stat().st_mode & 0o077 == 0


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        Home(tmp_path).make()
    with pytest.raises(InputError, match="is a file"):
        Home(tmp_path / "thesis.tex").make()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
