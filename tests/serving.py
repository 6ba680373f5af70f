"""Everything that `equicat serve` holds, without a server: its folder, its queue, and EMT in a model's place."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener
from urllib.request import Request as HTTPRequest

from ase.calculators.emt import EMT

from equicat.relaxation.models import CalculatorForces
from equicat.serve.check import Model
from equicat.serve.home import Home
from equicat.serve.jobs import Jobs
from equicat.serve.request import Request
from equicat.serve.runner import Runner
from equicat.serve.uploads import Uploads
from equicat.serve.worker import work

BASE = "http://127.0.0.1:8420"
KEY = "the key of this page"
SMALL = {"slab": "Cu(111) 2x2x3", "adsorbates": ["O"], "fmax": 0.1}
"""A request that takes a second."""


@dataclass
class Serving:
    """A folder, and what works in it."""

    home: Home
    jobs: Jobs
    uploads: Uploads
    model: Model
    runner: Runner

    @classmethod
    def of(cls, folder: Path, energy_reference: str = "adsorption") -> "Serving":
        """A new folder with EMT in a model's place."""
        home = Home(folder)
        home.make()
        jobs = Jobs(home.database)
        model = Model(Path("emt"), CalculatorForces(EMT, energy_reference))
        return cls(home, jobs, Uploads(home, jobs), model, Runner(home, jobs, home.held(), Path("emt")))

    def add(self, **changes) -> int:
        """Queue the small request with some changes; its number."""
        request = Request.read({**SMALL, **changes})
        checked = self.model.check(request, self.uploads)
        return self.jobs.add(checked.title, vars(request), checked.systems)

    def do(self, number: int) -> None:
        """Do a job in this process."""
        assert self.jobs.begin().id == number
        self.home.job(number).mkdir(parents=True, exist_ok=True)
        work(self.home, number, self.model)
        self.jobs.end(number, "done")


class Server:
    """`equicat serve` as a process, and a client that knows its key.

    Args:
        run: run directory.
        folder: for `--folder`.
    """

    def __init__(self, run: Path, folder: Path):
        command = [sys.executable, "-m", "equicat", "serve", str(run), "--folder", str(folder), "--port", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        self.address = line.removeprefix("page: ").strip()
        self.base, _, self.key = self.address.partition("/?key=")
        assert self.key, line
        self.browser = build_opener(HTTPCookieProcessor(), ProxyHandler({}))
        self.ask("GET", f"/?key={self.key}")

    def ask(self, method: str, path: str, values: object = None) -> bytes:
        """The body of an answer."""
        body = None if values is None else json.dumps(values).encode()
        headers = {"Origin": self.base}
        with self.browser.open(HTTPRequest(f"{self.base}{path}", body, headers, method=method)) as answer:
            return answer.read()

    def job(self, number: int) -> dict:
        """A job as the page gets it."""
        return json.loads(self.ask("GET", f"/api/jobs/{number}"))

    def wait(self, number: int, until) -> dict:
        """The job, once it fulfils a condition."""
        for _ in range(2400):
            job = self.job(number)
            if until(job):
                return job
            assert job["state"] in ("queued", "running"), job
            time.sleep(0.05)
        raise AssertionError(f"nothing after two minutes: {job}")

    def stop(self, how: int = signal.SIGINT) -> None:
        """End the server, and wait until it has ended."""
        self.process.send_signal(how)
        self.process.wait(timeout=30)
        self.process.stdout.close()
