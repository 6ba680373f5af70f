"""Where a run is logged beside metrics.csv: Weights & Biases, TensorBoard and MLflow."""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from equicat.errors import InputError
from equicat.extras import extra
from equicat.run_directory import DESCRIPTION, WEIGHTS
from equicat.training.config import TrainConfig

EXPERIMENT = "equicat"
"""Experiment of MLflow that runs belong to."""
MLFLOW_ID = "mlflow_run"
"""File in a run directory with the id that MLflow gave to the run."""


def make_loggers(config: TrainConfig, run: Path) -> list[Logger]:
    """The loggers that a configuration asks for. A resumed run keeps the ids under which it was logged so far.

    Args:
        config: of the run; loggers name it after ``run.out``.
        run: where the run is written now.

    Raises:
        InputError: if a package is not installed.
    """
    loggers: list[Logger] = []
    name = Path(config.run.out).resolve().name
    try:
        if config.run.tensorboard:
            loggers.append(TensorBoardLogger(run, name="tensorboard", version=""))
        if config.run.wandb:
            offline = "WANDB_API_KEY" not in os.environ and os.environ.get("WANDB_MODE") != "online"
            id_ = _wandb_id(run)
            title, project = config.run.wandb_name or name, config.run.wandb_project
            loggers.append(WandbLogger(title, run, id=id_, resume="allow", offline=offline, project=project))
        if config.run.mlflow:
            id_ = (run / MLFLOW_ID).read_text().strip() if (run / MLFLOW_ID).is_file() else None
            uri = os.environ.get("MLFLOW_TRACKING_URI")
            extra("mlflow", "mlflow")
            loggers.append(MLFlowLogger(EXPERIMENT, run_name=name, run_id=id_, tracking_uri=uri))
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name or error} is not installed; run `pip install 'equicat[tracking]'`") from error
    return loggers


def begin(loggers: Sequence[Logger], config: TrainConfig, run: Path) -> None:
    """Let the main process begin to log, with the configuration, so that what is wrong with a server shows at once.

    MLflow keeps the configuration that a run began with, and refuses others: a resumed run logs none.
    """
    for logger in loggers:
        begins = not (isinstance(logger, MLFlowLogger) and (run / MLFLOW_ID).is_file())
        if isinstance(logger, WandbLogger | MLFlowLogger) and begins:
            logger.log_hyperparams(asdict(config))
        if isinstance(logger, MLFlowLogger):
            (run / MLFLOW_ID).write_text(f"{logger.run_id}\n")


def finish(loggers: Sequence[Logger], run: Path) -> None:
    """End runs in the main process, with the saved model, if there is one, as an artefact.

    A run of Weights & Biases would go on until the process ends, and take in a next training.
    """
    files = [run / name for name in (DESCRIPTION, WEIGHTS) if (run / WEIGHTS).is_file()]
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            if files:
                artifact = import_module("wandb").Artifact(f"model-{logger.version}", type="model")
                for file in files:
                    artifact.add_file(str(file))
                logger.experiment.log_artifact(artifact)
            logger.experiment.finish()
        if isinstance(logger, MLFlowLogger):
            for file in files:
                logger.experiment.log_artifact(logger.run_id, str(file), "model")
            logger.finalize("success" if files else "failed")


def log_figures(config: TrainConfig, run: Path, figures: Sequence[Path]) -> None:
    """Add pictures to a finished run at Weights & Biases and MLflow, where it is taken up again for this.

    Args:
        config: of the run.
        run: its directory, which knows its ids.
        figures: files that are pictures.
    """
    for logger in make_loggers(replace(config, run=replace(config.run, tensorboard=False)), run):
        if isinstance(logger, WandbLogger):
            image = import_module("wandb").Image
            logger.experiment.log({f"figures/{path.stem}": image(str(path)) for path in figures})
            logger.experiment.finish()
        if isinstance(logger, MLFlowLogger):
            for path in figures:
                logger.experiment.log_artifact(logger.run_id, str(path), "figures")


def _wandb_id(run: Path) -> str | None:
    """The id under which a run was logged so far: Weights & Biases names folders after it."""
    return next((folder.name.rpartition("-")[2] for folder in sorted(run.glob("wandb/*run-*-*"))), None)
