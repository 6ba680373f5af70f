"""Jobs in processes of their own: how they end is noted, and they end with the server."""

import os
import sys
import time
from pathlib import Path

import pytest

from equicat import InputError
from equicat.serve.jobs import Jobs

SLEEP = "import time, sys; sys.stdin.close(); time.sleep(60)"


def job(serving, number=1):
    return serving.jobs.get(number)


def waited(serving, state, number=1):
    """The job, once it is in that state."""
    end = time.monotonic() + 20
    while job(serving, number).state != state:
        assert time.monotonic() < end, job(serving, number)
        time.sleep(0.02)
    return job(serving, number)


def process_of(serving):
    """The process of the first job, once it runs."""
    waited(serving, "running")
    while serving.runner._process is None:
        time.sleep(0.02)
    return serving.runner._process[1]


@pytest.fixture
def started(serving):
    """Starts a runner whose jobs run some Python in the place of the worker."""

    def start(*programs):
        for _ in programs:
            serving.add()
        text = f"import json, sys; exec({list(programs)!r}[json.loads(sys.argv[1])['job'] - 1])"
        serving.runner.worker = ("-c", text)
        serving.runner.start()
        return serving

    yield start
    serving.runner.close()


def test_how_a_process_ends_is_how_its_job_ends(started):
    bad = "sys.stderr.write('a warning\\nequicat: the slab has no energy\\n'); sys.exit(2)"
    serving = started("pass", bad, "import os; os.abort()", "raise RuntimeError('defect')", "sys.exit(3)", "pass")
    waited(serving, "done", 6)
    states = [(job(serving, n).state, job(serving, n).message) for n in range(1, 7)]
    assert states == [
        ("done", ""),
        ("failed", "the slab has no energy"),
        ("failed", "its process was ended by SIGABRT, perhaps for lack of memory"),
        ("failed", "RuntimeError: defect"),
        ("failed", "its process ended with status 3"),
        ("done", ""),
    ]


def test_a_cancelled_job_has_no_process(started):
    serving = started(SLEEP, "pass")
    process = process_of(serving)
    serving.jobs.cancel(1)
    serving.runner.stop(1)
    assert process.poll() is not None
    waited(serving, "done", 2)
    assert job(serving).state == "cancelled"


def test_a_job_of_a_server_that_stops_is_not_lost(started):
    serving = started(SLEEP)
    process = process_of(serving)
    serving.runner.close()
    assert process.poll() is not None
    assert job(serving).state == "running"  # the next server goes on with it


def test_the_lock_is_held_until_the_job_has_ended(started, tmp_path):
    """The process of a job inherits the lock, so that no second one works on the same job."""
    serving = started(SLEEP)
    process_of(serving)
    os.close(serving.runner.lock)  # as the death of the server would
    with pytest.raises(InputError, match="another `equicat serve`"):
        serving.home.held(wait=0.0)
    serving.runner.close()
    serving.home.held(wait=1.0)


def test_the_python_of_a_job_is_that_of_the_server(started):
    serving = started(f"assert sys.executable == {sys.executable!r}")
    assert waited(serving, "done").message == ""
    assert Path(serving.home.job(1), "log.txt").read_text() == ""


def test_a_queue_that_cannot_be_read_is_tried_again(started, monkeypatch, capsys):
    monkeypatch.setattr("equicat.serve.runner.PAUSE_AFTER_ERROR", 0.05)
    begin, refusals = Jobs.begin, ["the disk is full", "the disk is full"]

    def full(jobs):
        if refusals:
            raise InputError(refusals.pop())
        return begin(jobs)

    monkeypatch.setattr(Jobs, "begin", full)
    waited(started("pass"), "done")
    assert capsys.readouterr().err == "equicat: the disk is full\n" * 2
