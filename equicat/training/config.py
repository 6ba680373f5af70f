"""Options of `equicat train`, one dataclass a part, and how they are read from YAML; checked before any data are."""

import difflib
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser

from equicat.data.noise import NoiseConfig
from equicat.data.training_data import DataConfig
from equicat.errors import InputError
from equicat.models.heads import DisplacementHead
from equicat.networks.allegro import AllegroConfig
from equicat.networks.catalogue import NetworkConfig, architecture
from equicat.tasks.tasks import LossConfig
from equicat.training.normalization import NormalizationConfig
from equicat.training.optimizers import OptimizerConfig


@dataclass(frozen=True)
class RunConfig:
    """Length of a run, devices, and where results go."""

    out: str = "runs/model"
    """Run directory."""
    overwrite: bool = False
    """Replace a run that is there, once the new one has a model; resume goes on with it instead."""
    resume: bool = False
    """Go on after the run's last finished epoch, with the same data, model and loss; docs/training.md says what may
    change."""
    init_from: str | None = None
    """Start from the weights of another run (fine-tuning)."""
    seed: int = 0
    """Seed of weights and of the order of batches."""
    batch_size: int = 16
    """Structures per step and device (process)."""
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
    """Floating-point type of weights and features; energies are summed in float64."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of factors in PyTorch's float32 matrix products, whose sums stay float32: highest is float32, high is
    TF32, medium bf16, these where the hardware has them. Kernels for processors know float32 and float64 alone."""
    accelerator: str = "auto"
    """cpu, gpu, auto (Lightning)."""
    devices: str = "auto"
    """How many devices of this machine; several train data-parallel. auto: under torchrun or SLURM as many as it
    started processes, else all GPUs, or one CPU."""
    recompute: bool = False
    """Train with bounded memory: a few centres at a time, computed twice (networks without message passing)."""
    num_workers: int = 0
    """Processes that read structures and build neighbour lists; 0 does it in the training process."""
    wandb: bool = False
    """Log to Weights & Biases; offline unless an API key is set."""
    tensorboard: bool = False
    """Log to TensorBoard."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        if not 1 <= self.val_every <= self.max_epochs:
            raise InputError(
                f"run: val_every is {self.val_every} and max_epochs {self.max_epochs}; the model that is saved is the "
                "best one validated, so there must be at least one validation"
            )


@dataclass(frozen=True)
class TrainConfig:
    """Everything `equicat train` reads from its YAML file."""

    task: Literal["s2ef", "is2re", "is2rs"] = "s2ef"
    """s2ef: structure to energy and forces; is2re: initial structure to relaxed energy; is2rs: to relaxed structure."""
    data: DataConfig = field(default_factory=DataConfig)
    model: NetworkConfig = field(default_factory=AllegroConfig)
    output_mlp: tuple[int, ...] = (128,)
    """Hidden widths of the maps from features to what is predicted."""
    output_nonlinearity: Literal["silu"] | None = "silu"
    """Nonlinearity between the matrices of these maps, for scalars; null as in the published Allegro."""
    force_head: DisplacementHead = "gradient"
    """S2EF: gradient, F = -dE/dr; any other makes direct forces, which are faster and not conservative: vector, pair,
    sum (GemNet-dT), magnitude-direction."""
    displacement_head: DisplacementHead = "vector"
    """How displacements are predicted: gradient, magnitude-direction, vector or pair (see equicat.models.heads)."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
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
    add_options(parser, network_of(values))
    try:
        options = parser.parse_object(dict(values))
    except ArgumentError as error:
        raise InputError(f"{source}: {' '.join(str(error).split())}") from error
    return TrainConfig(**parser.instantiate(options).as_dict())


def network_of(values: Mapping[str, Any]) -> str:
    """The name of the network that a configuration asks for."""
    model = values.get("model")
    return str(model.get("name", "allegro")) if isinstance(model, Mapping) else "allegro"


def add_options(parser: ArgumentParser, network: str) -> None:
    """All options of :class:`TrainConfig`, those of ``model`` being the hyperparameters of that network.

    Raises:
        InputError: if there is no such network.
    """
    parser.add_class_arguments(TrainConfig, as_group=False, skip={"model"})
    parser.add_class_arguments(architecture(network).config, "model")


def known_keys(cls: type, prefix: str = "", network: str = "allegro") -> dict[str, type]:
    """Dotted names of all options of a dataclass, and of the parts that hold them."""
    keys: dict[str, type] = {}
    for f in fields(cls):
        name = f"{prefix}{f.name}"
        kind = f.type if isinstance(f.type, type) else object
        if name == "model":
            kind = architecture(network).config
        keys[name] = kind
        if is_dataclass(kind):
            keys |= known_keys(kind, f"{name}.")
    return keys


def check_keys(
    values: Mapping[str, Any],
    prefix: str = "",
    source: str = "config",
    network: str | None = None,
) -> None:
    """Refuse what no option is called.

    Raises:
        InputError: naming the unknown key and the nearest known one.
    """
    network = network or network_of(values)
    known = known_keys(TrainConfig, network=network)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in known:
            raise InputError(f"{source}: unknown key {name!r}{suggestion(name, list(known))}")
        if is_dataclass(known[name]) and isinstance(value, Mapping):
            check_keys(value, f"{name}.", source, network)


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
