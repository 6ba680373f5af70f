"""`equicat study`: experiments over many trainings, from one command each; called again, they go on."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from equicat.options.values import Words, Workers


def table1(data: str, *, out: str, workers: Workers = 1, **options: Any) -> None:
    """Every model on every task and split, laid out as Table 1 of the paper on Allegro for catalysis.

    Called again, or by several processes or jobs at the same time, it goes on: each training is done once.

    Args:
        data: Data set directory.
        out: Folder for table.md, results.json, figure.png, .svg and .csv, and all trainings.
        workers: Processes on this machine.
    """
    from equicat.studies import table1 as study

    print(study.TABLE1.conduct(Path(data), Path(out), study.Table1Options(**options), workers, _command()))


def l_max(data: str, *, out: str, workers: Workers = 1, **options: Any) -> None:
    """Accuracy against cost of Allegro with l_max 1 to 3, at equal epochs and in equal time.

    Called again, or by several processes or jobs at the same time, it goes on: each training is done once.

    Args:
        data: Data set directory.
        out: Folder for table.md, results.json, figure.png, .svg and .csv, and all trainings.
        workers: Processes on this machine.
    """
    from equicat.studies import l_max as study

    print(study.L_MAX.conduct(Path(data), Path(out), study.LMaxOptions(**options), workers, _command()))


def data_efficiency(data: str, *, out: str, workers: Workers = 1, **options: Any) -> None:
    """Learning curves of all models over nested training sets, with fitted slopes and their spread.

    Called again, or by several processes or jobs at the same time, it goes on: each training is done once.

    Args:
        data: Data set directory.
        out: Folder for table.md, results.json, figure.png, .svg and .csv, and all trainings.
        workers: Processes on this machine.
    """
    from equicat.studies import data_efficiency as study

    chosen = study.DataEfficiencyOptions(**options)
    print(study.DATA_EFFICIENCY.conduct(Path(data), Path(out), chosen, workers, _command()))


def locality(data: str, *, out: str, workers: Workers = 1, **options: Any) -> None:
    """Cost of a cutoff: Allegro beside a network with messages, errors by distance, direct beside relaxed energies.

    Called again, or by several processes or jobs at the same time, it goes on: each training is done once.

    Args:
        data: Data set directory.
        out: Folder for table.md, results.json, figure.png, .svg and .csv, and all trainings.
        workers: Processes on this machine.
    """
    from equicat.studies import locality as study

    print(study.LOCALITY.conduct(Path(data), Path(out), study.LocalityOptions(**options), workers, _command()))


def curves(runs: Annotated[tuple[str, ...], Words(positional=True)], *, out: str) -> None:
    """Training and validation curves of any runs.

    Args:
        runs: Run directories, or folders of studies with all their runs.
        out: Folder for table.md, results.json, figure.png, .svg and .csv.
    """
    from equicat.studies import curves as study

    print(study.curves(runs, Path(out), _command()))


def _command() -> str:
    """The command as it was typed."""
    return shlex.join(["equicat", *sys.argv[1:]])
