"""`equicat train`: a configuration from a file and the command line becomes a run and its report."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from equicat.errors import InputError
from equicat.options.parser import Parser, asks_for_help
from equicat.options.text import read_yaml

if TYPE_CHECKING:
    from equicat.training.config import TrainConfig
    from equicat.training.train import TrainResult


def train(*, print_config: bool = False, **options: Any) -> None:
    """Train a model as CONFIG says: a YAML file, or the name of a built-in configuration.

    Any option of CONFIG can be overridden, as in `--run.max_minutes 60`. `--data DATA` is short for training on the
    `train` split of a data set directory and validating on its `val_id`; of a store or a file, a tenth validates.

    Args:
        print_config: Print the configuration with all its options, as a file to start from, and stop.
    """
    from equicat.apply.evaluate import evaluate_validation
    from equicat.apply.results import as_text
    from equicat.training import train as training
    from equicat.training.config import TrainConfig, as_yaml
    from equicat.training.side_by_side import train_side_by_side
    from equicat.training.trainer import is_main_process

    config = TrainConfig(**options)
    if print_config:
        print(as_yaml(config), end="")
        return
    members, at_once = training.members(config), config.run.members_at_once
    if len(members) > 1 and at_once > 1:
        train_side_by_side(members, at_once)
    else:
        for member in members:
            result = training.train(member)
            if is_main_process():
                _conclude(member, result)
    if len(members) > 1 and is_main_process():
        mean = evaluate_validation(config.run.out, progress=config.run.progress)
        print(f"\nmean of {len(members)} models:\n{as_text(mean)}\n\nensemble: {config.run.out}")


def _conclude(config: "TrainConfig", result: "TrainResult") -> None:
    """Print how a model does on its validation data, write its report, and log the report's figures."""
    from equicat.apply.evaluate import evaluate_validation
    from equicat.apply.results import as_text
    from equicat.report.page import write_report
    from equicat.training.loggers import log_figures

    if result.seconds:
        print(f"trained for {result.seconds / 60:.1f} min; best validation loss {result.best_val_loss:.4g}\n")
    print(as_text(evaluate_validation(result.run, progress=config.run.progress)))
    logged = result.seconds > 0 and (config.run.wandb or config.run.mlflow)
    with TemporaryDirectory() as folder:
        report = write_report(result.run, figures=Path(folder) if logged else None)
        print(f"\nrun: {result.run}\nreport: {report}")
        if logged:
            log_figures(config, result.run, sorted(Path(folder).glob("*.png")))


class TrainParser(Parser):
    """Parser of `equicat train`: the configuration and the network, if named, decide which options there are."""

    def __init__(self) -> None:
        super().__init__(train, usage="equicat train CONFIG [--data DATA] [--OPTION VALUE ...]")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, **settings: Any
    ) -> Namespace:
        """The values of all options: those of the configuration, overridden by those of the command line.

        Raises:
            InputError: for an unknown option, or a value that is not what the option may be.
        """
        from equicat.training.config import with_data
        from equicat.training.presets import find_configuration, presets

        words = list(args or ())
        if not words:
            raise InputError("train: name a configuration, a file or a built-in one such as small; see --help")
        if not words[0].startswith("-"):
            words.insert(0, "--config")
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.error = self.error  # type: ignore[method-assign]
        for name in ("config", "data", "model.name"):
            first.add_argument(f"--{name}")
        given, rest = first.parse_known_args(words)
        config, data, network = vars(given).values()
        values = with_data({} if config is None else read_yaml(find_configuration(config)), data)
        if network is not None:
            values["model"] = {**(values.get("model") or {}), "name": network}
        self.explains = asks_for_help(words)
        self.description = f"{self.description}\n\nBuilt-in configurations: {', '.join(sorted(presets()))}."
        return super().parse_args(rest, self.read(values, config or ""), **settings)
