"""`equicat search`: hyperparameters by trial and error, in a local database of Optuna.

A search is a folder::

    search.db            Optuna's database: the values of every trial, and what came of it
    trials/0003/         run directory of trial 3
    trials/0003.lock     held, by flock, by the process that trains trial 3
    lock                 held while a process draws a trial
    results.json         all trials, the best first

Any number of processes may work on one folder. A lock ends with its process, so a trial whose process was killed is
taken up by the next one, which goes on after its last finished epoch. Processes on several machines need a file system
with locks.
"""

import fcntl
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from equicat.errors import InputError
from equicat.extras import extra
from equicat.files import replace_json, writing_to
from equicat.options.text import read_yaml
from equicat.options.values import Positive, Seed
from equicat.run_directory import METRICS, has_checkpoint, metric_columns, saved_epoch
from equicat.studies.space import Range, Space, read_space
from equicat.training.config import TrainConfig, from_mapping, with_data
from equicat.training.presets import find_configuration
from equicat.training.train import train


@dataclass(frozen=True)
class Results:
    """The trials of a search, the best first; those without a value last."""

    metric: str
    trials: list[dict[str, Any]]
    """Each with ``trial`` (number), ``state``, ``value``, ``options`` and ``run``, and ``error`` if it failed."""


def search(
    config: str,
    *,
    space: str,
    out: str,
    data: str | None = None,
    trials: Positive = 20,
    seed: Seed = 0,
) -> Results:
    """Train with one set of options after the other, until there are so many trials.

    Started again, or several times at once, it goes on with the same search; a trial that was interrupted is finished
    first. A trial that fails is kept with its message, and the search goes on.

    Args:
        config: Configuration file, or the name of a built-in one: what all trials have in common.
        space: Options and their values: a sweep file of Weights & Biases, or the name of a built-in one (allegro_s2ef).
        out: Directory for the search.
        data: Data set directory, store or structure file; without it those of the configuration.
        trials: Trials of the search, those of earlier sessions included; a grid ends when it is complete.
        seed: Seed of the draws. Each trial is trained with the seed of the configuration.

    Returns:
        All trials so far.

    Raises:
        InputError: for a bad configuration or space, before anything is written; if ``out`` holds another search; or if
            no trial has a value in the end.
    """
    optuna, found = extra("optuna", "search"), read_space(space)
    base = with_data(read_yaml(find_configuration(config)), data)
    work = _Search(optuna, Path(out), found, base, seed)
    work.configuration(found.first_point(), Path(out))  # names and values are those of options
    work.open()
    while (claimed := work.claim(trials)) is not None:
        with claimed[1]:
            work.do(claimed[0])
    results = work.results()
    if not any(trial["value"] is not None for trial in results.trials):
        errors = [trial["error"] for trial in results.trials if "error" in trial]
        raise InputError(f"{out}: no trial has finished{f'; the last one: {errors[-1]}' if errors else ''}")
    replace_json(Path(out) / "results.json", asdict(results))
    return results


def as_text(results: Results) -> str:
    """The trials as a table: number, value of the metric, options."""
    names = list(results.trials[0]["options"])
    rows = [["trial", results.metric, *names]]
    for trial in results.trials:
        value = trial["state"] if trial["value"] is None else f"{trial['value']:.5g}"
        options = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (trial["options"].get(n, "") for n in names)]
        rows.append([str(trial["trial"]), value, *options])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)


class _Search:
    """One process's hand on a search.

    Args:
        optuna: the package.
        out: directory of the search.
        space: what is tried.
        base: the configuration that all trials have in common, by part.
        seed: of the draws.
    """

    def __init__(self, optuna: Any, out: Path, space: Space, base: Mapping[str, Any], seed: int):
        self.optuna, self.out, self.space, self.base, self.seed = optuna, out, space, base, seed
        self.study: Any = None

    def open(self) -> None:
        """Make the database, or find the one that is there.

        Raises:
            InputError: if it is that of another search.
        """
        self.optuna.logging.set_verbosity(self.optuna.logging.WARNING)
        with writing_to(self.out):
            (self.out / "trials").mkdir(parents=True, exist_ok=True)
        with _held(self.out / "lock", wait=True):
            self.study = self.optuna.create_study(
                storage=f"sqlite:///{(self.out / 'search.db').resolve()}",
                study_name="search",
                direction="maximize" if self.space.maximize else "minimize",
                load_if_exists=True,
            )
            mine = {"space": repr(self.space), "configuration": repr(self.base)}
            for name, value in mine.items():
                if self.study.user_attrs.setdefault(name, value) != value:
                    raise InputError(f"{self.out}: holds a search with another {name}; give --out another directory")
                self.study.set_user_attr(name, value)

    def claim(self, n_trials: int) -> tuple[Any, ExitStack] | None:
        """A trial that no other process works on, and the hold on it; None if there is none left.

        Trials whose process has ended come first.
        """
        states, trial_of = self.optuna.trial.TrialState, self.optuna.trial.Trial
        with _held(self.out / "lock", wait=True):
            trials = self.study.get_trials(deepcopy=False)
            begun = [trial for trial in trials if trial.state != states.WAITING]
            self.study.sampler = self._sampler(self.seed + len(begun))
            for trial in begun:
                if trial.state == states.RUNNING and (hold := self._hold(trial.number)) is not None:
                    if self.study.get_trials(deepcopy=False)[trial.number].state == states.RUNNING:
                        return self._drawn(trial_of(self.study, trial._trial_id)), hold
                    hold.close()  # finished since it was listed
            if len(begun) >= min(n_trials, self.space.size):
                return None
            if self.space.method == "grid" and len(begun) == len(trials):
                self.study.enqueue_trial(self.space.grid_point(len(begun)))
            drawn = self._drawn(self.study.ask())
            hold = self._hold(drawn.number)
            assert hold is not None, "a new number has no owner"
            return drawn, hold

    def do(self, trial: Any) -> None:
        """Train a trial, or go on with it, and keep what came of it."""
        run = self._run(trial.number)
        try:
            done = train(self.configuration(trial.params, run)).run
            value = _value(done, self.space.metric)
        except InputError as error:
            print(f"trial {trial.number}: {error}", file=sys.stderr, flush=True)
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            return
        self.study.tell(trial, value)
        print(f"trial {trial.number}: {self.space.metric} {value:.5g} with {trial.params}", flush=True)

    def configuration(self, options: Mapping[str, Any], run: Path) -> TrainConfig:
        """The configuration of a trial, which goes on with its run if there is one.

        Raises:
            InputError: if it is none.
        """
        values = deepcopy(dict(self.base))
        resume = has_checkpoint(run)
        own = {"run.out": str(run), "run.resume": resume, "run.overwrite": not resume}
        for name, value in (dict(options) | own).items():
            part, _, option = name.partition(".")
            if option:
                values[part] = {**(values.get(part) or {}), option: value}
            else:
                values[part] = value
        return from_mapping(values, "search")

    def results(self) -> Results:
        """All trials so far, the best first."""
        trials = []
        for trial in self.study.get_trials(deepcopy=False):
            row = {"trial": trial.number, "state": trial.state.name.lower(), "value": trial.value}
            row |= {"options": trial.params, "run": str(self._run(trial.number)), **trial.user_attrs}
            trials.append(row)
        sign = -1 if self.space.maximize else 1
        trials.sort(key=lambda row: (row["value"] is None, sign * (row["value"] or 0), row["trial"]))
        return Results(self.space.metric, trials)

    def _run(self, number: int) -> Path:
        return self.out / "trials" / f"{number:04d}"

    def _hold(self, number: int) -> ExitStack | None:
        return _held(self.out / "trials" / f"{number:04d}.lock", wait=False)

    def _sampler(self, seed: int) -> Any:
        samplers = self.optuna.samplers
        return samplers.TPESampler(seed=seed) if self.space.method == "bayes" else samplers.RandomSampler(seed=seed)

    def _drawn(self, trial: Any) -> Any:
        """The trial with a value for every option; those that it has already stay."""
        for name, values in self.space.options.items():
            if not isinstance(values, Range):
                trial.suggest_categorical(name, values)
            elif values.distribution == "int_uniform":
                trial.suggest_int(name, int(values.low), int(values.high))
            else:
                trial.suggest_float(name, values.low, values.high, log=values.distribution == "log_uniform_values")
        return trial


def _held(path: Path, wait: bool) -> Any:
    """The lock of a file as a context that gives it back; None if another process has it and ``wait`` is False."""
    with ExitStack() as stack:
        file: IO[str] = stack.enter_context(path.open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return None
        return stack.pop_all()


def _value(run: Path, metric: str) -> float:
    """The metric of a run's saved epoch.

    Raises:
        InputError: if the run has no such metric.
    """
    columns = metric_columns(run / METRICS)
    epoch = saved_epoch(columns)
    if metric not in columns or epoch is None:
        raise InputError(f"{run}: no metric {metric}; there are {', '.join(columns)}")
    return float(columns[metric][epoch])
