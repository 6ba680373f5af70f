"""The processes that do the cells of a study: this one, several on one machine, or those of SLURM or torchrun."""

import os
import sys
from pathlib import Path

from equicat.errors import InputError
from equicat.studies.cells import Plan, work


def do_cells(plan: Plan, workers: int) -> None:
    """Do the cells of a plan that no other process does.

    Args:
        plan: written already.
        workers: processes; where there are several GPUs, each has one of them.

    Raises:
        InputError: if a process ended early; what it did is kept.
    """
    started_by_others = any(name.startswith(("SLURM_JOB_ID", "WORLD_SIZE")) for name in os.environ)
    if workers == 1 and not started_by_others:
        work_alone(plan.out)
        return
    from equicat.training.side_by_side import statuses  # costly to import, and not needed by who works alone

    programs = [["equicat.studies.workers", str(plan.out)]] * workers
    failed = [status for status in statuses(programs, [None] * workers) if status]
    if failed:
        raise InputError(
            f"{plan.out}: {len(failed)} of {workers} workers ended with status {failed[0]}; what is finished is kept, "
            "run the command again to go on"
        )


def work_alone(out: Path) -> None:
    """Do the cells of the study in ``out`` that no other process does, in this process."""
    plan = Plan.read(out)
    if not plan.unfinished():
        return
    from equicat.studies.run_cell import run_cell  # what trains is costly to import

    work(plan, run_cell, lambda line: print(line, flush=True))


if __name__ == "__main__":
    try:
        work_alone(Path(sys.argv[1]))
    except InputError as error:
        print(f"equicat: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
