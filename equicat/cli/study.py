"""`equicat study`: experiments over many trainings, from one command each; go on when called again."""

import shlex
import sys
from pathlib import Path
from typing import Any

from equicat.options.values import Workers


def table1(data: str, *, out: str, workers: Workers = 1, **options: Any) -> None:
    """Every model on every task and split, laid out as Table 1 of the paper on Allegro for catalysis.

    Called again, or by several processes or jobs at the same time, it goes on: each training is done once.

    Args:
        data: Data set directory.
        out: Folder for table.md, results.json, figure.png, .svg and .csv, and all trainings.
        workers: Processes on this machine.
    """
    from equicat.studies import table1 as study

    chosen = study.Table1Options(**options)
    print(study.table1(Path(data), Path(out), chosen, workers, _command()))


def _command() -> str:
    """The command as it was typed."""
    return shlex.join(["equicat", *sys.argv[1:]])
