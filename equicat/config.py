"""What a training run can be told; one dataclass per part, checked before anything is read."""

import difflib
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from equicat.errors import InputError
from equicat.models.allegro import AllegroConfig


@dataclass(frozen=True)
class DataConfig:
    """Where the structures are. Paths are relative to the working directory; globs are expanded."""

    train: tuple[str, ...] = ()
    """Stores, data set directories (their train split), or structure files."""
    val: tuple[str, ...] = ()
    """The same for validation (val_id split). Empty: n_val structures are drawn from the training data."""
    train_where: dict[str, str] = field(default_factory=dict)
    """Of structure files, use only frames with these info values, such as {split: train}."""
    val_where: dict[str, str] = field(default_factory=dict)
    """The same for validation."""
    n_train: int | None = None
    """Use so many training structures, drawn at random; null uses all."""
    n_val: int | None = None
    """Use so many validation structures, drawn at random; null uses all."""
    energy_key: str | None = None
    """Take energies (eV) from this info key of structure files."""
    energy_reference: Literal["adsorption", "total", "relative"] | None = None
    """What the energies of structure files are; stores know."""
    split_seed: int = 0
    """Of the draws above."""


@dataclass(frozen=True)
class NormalizationConfig:
    """What the network does not have to learn."""

    references: Literal["linear", "none"] | dict[str, float] = "linear"
    """Energy of each element (eV): linear fits them to the training energies; or give them, such as {H: -13.6}."""
    scale: float | None = None
    """Pair energies are in units of this (eV); null takes the root mean square force of free atoms."""


@dataclass(frozen=True)
class LossConfig:
    """energy_weight × energy loss + forces_weight × force loss, errors in units of the scale; free atoms only."""

    energy: Literal["mae", "per_atom_mae", "per_atom_mse"] = "mae"
    """Mean absolute error per system, or mean absolute or squared error per atom."""
    forces: Literal["l2", "mae", "mse"] = "l2"
    """Mean length of the error vector, or mean absolute or squared error of the components."""
    energy_weight: float = 1.0
    """Coefficient of the energy loss."""
    forces_weight: float = 30.0
    """Coefficient of the force loss."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, a schedule, an average of the weights."""

    lr: float = 2e-3
    """Learning rate."""
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    """plateau lowers the rate when val_loss stalls; cosine takes it to 1% over max_epochs or max_minutes."""
    warmup_steps: int = 0
    """Linear warm-up of the rate (cosine and constant)."""
    plateau_factor: float = 0.8
    """What a plateau multiplies the rate with."""
    plateau_patience: int = 5
    """Validations without a better val_loss before that."""
    ema_decay: float | None = 0.99
    """Exponential moving average of the weights, used for validation and saved; null turns it off."""
    gradient_clip: float | None = 10.0
    """Largest norm of the gradient; null turns it off."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and where results go."""

    out: str = "runs/s2ef"
    """Run directory."""
    overwrite: bool = False
    """Replace a run that is there."""
    resume: bool = False
    """Go on from the run's last checkpoint."""
    init_from: str | None = None
    """Start from the weights of another run (fine-tuning)."""
    seed: int = 0
    """Of weights and of the order of batches."""
    batch_size: int = 16
    """Structures per step and device."""
    edge_budget: int | None = None
    """Fill batches up to so many edges within the cutoff instead of batch_size structures; null counts structures."""
    val_batch_size: int | None = None
    """Structures per validation batch; null takes batch_size."""
    max_epochs: int = 30
    """Passes over the training data."""
    max_minutes: float | None = None
    """Stop after so many minutes of training."""
    val_every: int = 1
    """Validate after every so many epochs."""
    early_stopping: int | None = None
    """Stop after so many validations without a better val_loss; null never does."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and features."""
    accelerator: str = "auto"
    """cpu, gpu, auto (Lightning)."""
    devices: str = "auto"
    """How many (Lightning); several train data-parallel, also under torchrun and SLURM."""
    num_workers: int = 0
    """Processes that read structures and build neighbour lists; 0 does it in the training process."""
    wandb: bool = False
    """Log to Weights & Biases; offline unless an API key is set."""
    tensorboard: bool = False
    """Log to TensorBoard."""
    progress: bool = True
    """Show a progress bar."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything `equicat train` reads from its YAML file."""

    task: Literal["s2ef"] = "s2ef"
    """s2ef: structure to energy and forces."""
    data: DataConfig = field(default_factory=DataConfig)
    model: AllegroConfig = field(default_factory=AllegroConfig)
    output_mlp: tuple[int, ...] = (128,)
    """Hidden widths of the map from pair features to pair energy."""
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)


def from_mapping(values: Mapping[str, Any], source: str = "config") -> TrainConfig:
    """A configuration from plain mappings and lists, as YAML holds it.

    Raises:
        InputError: for an unknown key, or a value of the wrong type.
    """
    check_keys(values, source=source)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, as_group=False)
    try:
        options = parser.parse_object(dict(values))
    except ArgumentError as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error
    return TrainConfig(**parser.instantiate(options).as_dict())


def known_keys(cls: type, prefix: str = "") -> dict[str, type]:
    """Dotted names of all options of a dataclass, and of the parts that hold them."""
    keys: dict[str, type] = {}
    for f in fields(cls):
        name = f"{prefix}{f.name}"
        kind = f.type if isinstance(f.type, type) else object
        keys[name] = kind
        if is_dataclass(kind):
            keys |= known_keys(kind, f"{name}.")
    return keys


def check_keys(values: Mapping[str, Any], cls: type = TrainConfig, prefix: str = "", source: str = "config") -> None:
    """Refuse what no option is called.

    Raises:
        InputError: naming the unknown key and the nearest known one.
    """
    known = known_keys(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in known:
            raise InputError(f"{source}: unknown key {name!r}{suggestion(name, list(known))}")
        if is_dataclass(known[name]) and isinstance(value, Mapping):
            check_keys(value, cls, f"{name}.", source)


def suggestion(name: str, known: list[str]) -> str:
    """The nearest known dotted name: by its last part anywhere, else by the whole."""
    last = name.rsplit(".", 1)[-1]
    by_last = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    by_last |= {k.rsplit(".", 1)[-1]: k for k in known if k.rsplit(".", 1)[0] == name.rsplit(".", 1)[0]}
    match = difflib.get_close_matches(last, list(by_last), n=1, cutoff=0.5)
    if match:
        return f"; the nearest is {by_last[match[0]]!r}"
    return f"; options here: {', '.join(k for k in known if k.count('.') == name.count('.'))}"


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A configuration file as a mapping, its keys checked.

    Raises:
        InputError: if the file is missing, is not a mapping, or has an unknown key.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a configuration is a mapping of keys to values, found {type(values).__name__}")
    check_keys(values, source=str(path))
    return values
