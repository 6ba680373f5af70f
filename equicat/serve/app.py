"""The addresses of the page: what each one answers, as JSON, as a file of a job, or as the page itself."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import equicat.report
from equicat import __version__
from equicat.adsorption.page import PAGE
from equicat.adsorption.results import STRUCTURES, TABLE
from equicat.errors import InputError
from equicat.options.values import read_value
from equicat.report.templates import template
from equicat.report.viewer.viewer import view_of
from equicat.serve import progress
from equicat.serve.check import Model
from equicat.serve.guard import Guard
from equicat.serve.home import LOG, SCREENING, Home
from equicat.serve.jobs import Job, UnknownJob
from equicat.serve.request import Request as Asked
from equicat.serve.runner import Runner
from equicat.serve.uploads import MAX_BYTES, Kind, Uploads

ASSETS = Path(__file__).with_name("page")
MAX_REQUEST = 100_000
"""Bytes of a request that is no upload."""
FILES = {
    "table.csv": (Path(SCREENING, TABLE), "text/csv"),
    "structures.extxyz": (Path(SCREENING, STRUCTURES), "text/plain"),
    "page.html": (Path(SCREENING, PAGE), "text/html"),
    "log.txt": (Path(LOG), "text/plain"),
}
"""Files of a job that can be had."""
APART = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:"
)
"""Content security policy of a job's own HTML page, which gets no access to this one."""


class Pages:
    """The answers of all addresses.

    Args:
        home: the folder.
        model: the model.
        runner: works on the queue.
    """

    def __init__(self, home: Home, model: Model, runner: Runner):
        self.home, self.model, self.runner, self.jobs = home, model, runner, runner.jobs
        self.uploads = Uploads(home, self.jobs)
        self.facts = {**model.facts(), "version": __version__}

    async def index(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse(template("page/page.html.j2", "equicat.serve").render(facts=self.facts))

    async def asset(self, request: Request) -> Response:
        """A script or a style of the page, by its fixed name."""
        name = request.path_params["name"]
        if name not in self.assets:
            return _error("there is no such file", 404)
        path, media = self.assets[name]
        return FileResponse(path, media_type=media)

    async def list(self, request: Request) -> Response:
        """All jobs, with their progress."""
        return JSONResponse({"jobs": await run_in_threadpool(lambda: [self._short(job) for job in self.jobs.all()])})

    async def check(self, request: Request) -> Response:
        """The systems of a request and everything that can be said of it; nothing is queued."""
        asked = Asked.read(await _json(request))
        checked = await run_in_threadpool(self.model.check, asked, self.uploads)
        return JSONResponse(
            {
                "title": checked.title,
                "n_systems": len(checked.systems),
                "n_placements": sum(system["kind"] == "placement" for system in checked.systems),
                "sites": checked.sites,
                "notes": checked.notes,
                "warnings": checked.warnings,
                "slab": view_of(checked.slab, "clean slab").as_json(),
            }
        )

    async def add(self, request: Request) -> Response:
        """Queue a job."""
        asked = Asked.read(await _json(request))
        return JSONResponse({"id": await run_in_threadpool(self._add, asked)}, status_code=201)

    async def job(self, request: Request) -> Response:
        """A job with its rows."""
        return JSONResponse(await run_in_threadpool(self._long, _number(request, "job")))

    async def structure(self, request: Request) -> Response:
        """A system of a job, before its relaxation and after it, as the viewer draws it."""
        job = self.jobs.get(_number(request, "job"))
        folder = self.home.job(job.id)
        structure = await run_in_threadpool(progress.structure_of, folder, _number(request, "system"))
        view = view_of(structure, structure.sid).as_json()
        return JSONResponse({**view, "states": view["states"][::-1]})  # the relaxed one is shown first

    async def file(self, request: Request) -> Response:
        """A file of a job."""
        job = self.jobs.get(_number(request, "job"))
        name = request.path_params["name"]
        if name not in FILES or not (path := self.home.job(job.id) / FILES[name][0]).exists():
            return _error(f"job {job.id} has no {name[:40]} yet", 404)
        how: dict[str, Any] = {"headers": {"Content-Security-Policy": APART}}
        if not name.endswith((".html", ".txt")):
            how["filename"] = f"job-{job.id}-{name}"
        return FileResponse(path, media_type=FILES[name][1], **how)

    async def cancel(self, request: Request) -> Response:
        """Take a job out of the queue, or stop it."""
        return await self._changed(_number(request, "job"), self._cancel)

    async def again(self, request: Request) -> Response:
        """Queue a job that failed or was cancelled once more; it goes on where it stopped."""
        return await self._changed(_number(request, "job"), self.jobs.again)

    async def remove(self, request: Request) -> Response:
        """Remove a job and its files."""
        return await self._changed(_number(request, "job"), self._remove)

    async def upload(self, request: Request) -> Response:
        """Check and keep a structure file, which is the body."""
        kind: Kind = read_value("kind", request.query_params.get("kind", ""), Kind)
        content = await _body(request, MAX_BYTES)
        name = request.query_params.get("name", "")
        return JSONResponse(asdict(await run_in_threadpool(self.uploads.add, kind, name, content)), status_code=201)

    @property
    def assets(self) -> Mapping[str, tuple[Path, str]]:
        """Files that belong to the page, by name."""
        report = Path(equicat.report.__path__[0])
        return {
            "viewer.css": (report / "viewer" / "viewer.css", "text/css"),
            "viewer.js": (report / "viewer" / "viewer.js", "text/javascript"),
            "base.css": (report / "page.css", "text/css"),
            "page.css": (ASSETS / "page.css", "text/css"),
            "page.js": (ASSETS / "page.js", "text/javascript"),
            "3Dmol-license.txt": (report / "viewer" / "LICENSE", "text/plain"),
            "3Dmol.js": (report / "viewer" / "3Dmol-min.js", "text/javascript"),
        }

    def _add(self, asked: Asked) -> int:
        checked = self.model.check(asked, self.uploads)
        return self.jobs.add(checked.title, asdict(asked), checked.systems)

    def _cancel(self, number: int) -> None:
        self.jobs.cancel(number)
        self.runner.stop(number)

    def _remove(self, number: int) -> None:
        self.jobs.remove(number)
        shutil.rmtree(self.home.job(number), ignore_errors=True)

    async def _changed(self, number: int, change: Callable[[int], None]) -> Response:
        await run_in_threadpool(change, number)
        return JSONResponse({})

    def _short(self, job: Job) -> dict[str, Any]:
        """A line of the list of jobs."""
        found = progress.n_finished(self.home.job(job.id), job.n_systems)
        said = {name: value for name, value in vars(job).items() if name != "request"}
        return {**said, "n_finished": found if job.state != "queued" or found else 0}

    def _long(self, number: int) -> dict[str, Any]:
        """Everything about a job."""
        job, folder = self.jobs.get(number), self.home.job(number)
        systems = self.jobs.systems(number)
        labels = {token: self.uploads.label(token) for token in Asked.read(job.request).tokens}
        return {
            **self._short(job),
            "request": job.request,
            "labels": labels,
            "rows": progress.result_rows(folder, systems)
            if job.state == "done"
            else progress.live_rows(folder, systems, job.state == "running"),
            **progress.remarks_in(folder),
            "files": [name for name, (path, _) in FILES.items() if (folder / path).exists()],
        }


def make_app(home: Home, model: Model, runner: Runner, key: str) -> ASGIApp:
    """The application: the addresses, behind the guard.

    Args:
        home: the folder.
        model: the model.
        runner: works on the queue.
        key: the secret of the address.
    """
    pages = Pages(home, model, runner)
    job = "/api/jobs/{job:int}"
    routes = [
        Route("/", pages.index),
        Route("/assets/{name}", pages.asset),
        Route("/api/check", pages.check, methods=["POST"]),
        Route("/api/uploads", pages.upload, methods=["POST"]),
        Route("/api/jobs", pages.list),
        Route("/api/jobs", pages.add, methods=["POST"]),
        Route(job, pages.job),
        Route(job, pages.remove, methods=["DELETE"]),
        Route(f"{job}/cancel", pages.cancel, methods=["POST"]),
        Route(f"{job}/again", pages.again, methods=["POST"]),
        Route(f"{job}/systems/{{system:int}}", pages.structure),
        Route(f"{job}/{{name}}", pages.file),
    ]
    refusals: Mapping[Any, Any] = {UnknownJob: _refused(404), TooLarge: _refused(413), InputError: _refused(422)}
    return Guard(Starlette(routes=routes, exception_handlers=refusals), key)


class TooLarge(InputError):
    """The body of a request is larger than what is taken."""


def _refused(status: int) -> Callable[[Request, Exception], Response]:
    """A handler that answers bad input with one line."""
    return lambda request, error: _error(" ".join(str(error).split()), status)


def _error(line: str, status: int) -> Response:
    return JSONResponse({"error": line}, status_code=status)


def _number(request: Request, name: str) -> int:
    """A number of the address; one that is beyond all jobs stays so, and becomes one that SQLite can hold."""
    return min(int(request.path_params[name]), 2**31)


async def _body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        TooLarge: as soon as it has more than ``most`` bytes.
    """
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise TooLarge(f"this is larger than {most / 1e6:g} MB, more than is taken")
    return content


async def _json(request: Request) -> dict[str, Any]:
    """The JSON object that is the body of a request.

    Raises:
        InputError: if it is none.
    """
    body = await _body(request, MAX_REQUEST)
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the request is no JSON") from error
    if not isinstance(values, dict):
        raise InputError("the request is no JSON object")
    return values
