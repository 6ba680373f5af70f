"""``python -m equicat.serve.worker FOLDER JOB RUN …``: one job in a process of its own, which ends with the server.

A job is :func:`equicat.adsorption_energies` that goes on where it stopped; a process for each means that one that
crashes, or is cancelled, takes nothing else with it.
"""

import json
import os
import sys
import threading
import warnings
from pathlib import Path

from equicat.adsorption.energies import adsorption_energies
from equicat.errors import InputError
from equicat.files import replace_json
from equicat.relaxation.models import force_model
from equicat.serve.check import Model
from equicat.serve.home import RESULT, SCREENING, STEPS, Home
from equicat.serve.jobs import Jobs
from equicat.serve.request import Request, open_request
from equicat.serve.uploads import Uploads
from equicat.serve.watched import watched


def end_with_server() -> None:
    """End this process when the standard input closes, as it does when the server dies, however it dies."""

    def wait() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock would be held when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def work(home: Home, number: int, model: Model) -> None:
    """Do a job, or the rest of it, and write its results into its folder.

    Raises:
        InputError: if it cannot be done.
    """
    jobs = Jobs(home.database)
    uploads, request = Uploads(home, jobs), Request.read(jobs.get(number).request)
    if not (home.job(number) / SCREENING).exists():
        jobs.set_systems(number, model.check(request, uploads).systems)  # it was queued, maybe for another model
    slab, adsorbates = open_request(request, uploads)
    folder = home.job(number)
    result = adsorption_energies(
        slab,
        adsorbates,
        watched(model.forces, folder / STEPS),
        model.config(request),
        out=folder / SCREENING,
        existing="resume",
        progress=False,
    )
    said = {"warnings": result.warnings, "reference": result.reference, "notes": result.notes}
    replace_json(folder / RESULT, said)


def main(options: str) -> int:
    """Do the job that JSON names; exit status 2 and one line if it cannot be done."""
    end_with_server()
    given = json.loads(options)
    warnings.simplefilter("ignore", UserWarning)  # they stand among the results
    try:
        forces = force_model(given["run"], given["device"])
        work(Home(Path(given["folder"])), given["job"], Model(Path(given["run"]), forces, given["references"]))
    except InputError as error:
        print("equicat: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
