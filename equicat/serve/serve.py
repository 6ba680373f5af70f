"""`equicat serve`: the folder, the model, the queue and the page, until Ctrl-C."""

import socket
from pathlib import Path

from equicat.errors import InputError
from equicat.extras import extra
from equicat.relaxation.models import force_model
from equicat.serve.check import Model
from equicat.serve.home import Home
from equicat.serve.jobs import Jobs
from equicat.serve.runner import Runner
from equicat.serve.uploads import Uploads

ADDRESS = "127.0.0.1"
"""The loopback address; there is no option for another one, see docs/serve.md."""


def serve(
    run: str | Path, folder: str | Path, port: int, *, device: str = "auto", references: str | None = None
) -> None:
    """Show the page and work on its queue until Ctrl-C or SIGTERM.

    Args:
        run: run directory of a model of energies and forces.
        folder: where everything is kept; the only place that is written to.
        port: of the loopback address; 0: any that is free.
        device: where jobs compute.
        references: file of gas energies for models of total energies.

    Raises:
        InputError: if the run, the folder or the port cannot be used, or a package is missing.
    """
    uvicorn = extra("uvicorn", "serve")
    extra("starlette", "serve")
    from equicat.serve.app import make_app

    run = Path(run).resolve()
    references = None if references is None else str(Path(references).resolve())
    model = Model(run, force_model(run), references)
    home = Home(Path(folder).resolve())
    home.make()
    listening = _listening(port)
    with listening:
        lock = home.held()
        jobs = Jobs(home.database)
        Uploads(home, jobs).sweep()
        runner = Runner(home, jobs, lock, run, device, references)
        app, port = make_app(home, model, runner, home.key()), listening.getsockname()[1]
        runner.start()
        try:
            print(f"page: http://{ADDRESS}:{port}/?key={home.key()}\nfolder: {home.path}\nCtrl-C stops it", flush=True)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False, ws="none"))
            server.run(sockets=[listening])
        finally:
            runner.close()


def _listening(port: int) -> socket.socket:
    """A socket on the loopback address.

    Raises:
        InputError: if the port is taken or may not be used.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((ADDRESS, port))
        listening.listen()  # from here on, a browser that is too early waits
    except OSError as error:
        listening.close()
        raise InputError(f"port {port} of {ADDRESS} cannot be used ({error.strerror}); give another --port") from error
    return listening
