"""Everything that `equicat serve` holds, without a server: its folder, its queue, and EMT in a model's place."""

from dataclasses import dataclass
from pathlib import Path

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
