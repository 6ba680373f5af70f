"""Options of `equicat train`, one dataclass a part, and how they are read from YAML; checked before any data are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import yaml

from equicat.data.noise import NoiseConfig
from equicat.data.training_data import DataConfig, data_options
from equicat.errors import InputError
from equicat.models.direct import EnergyAtoms
from equicat.models.electrostatics import LongRange
from equicat.models.heads import MLP_HEAD, DisplacementHead, OwnHead, find_energy_head, find_vector_head
from equicat.models.potential import check_long_range
from equicat.networks.allegro import AllegroConfig
from equicat.networks.catalogue import NetworkConfig
from equicat.options.parser import Parser, chosen_in
from equicat.options.values import Checked, Interval, Natural, Positive, PositiveNumber, Range, Seed, Share, Width
from equicat.run_directory import plain
from equicat.tasks.tasks import LossConfig
from equicat.training.normalization import NormalizationConfig
from equicat.training.optimizers import OptimizerConfig


@dataclass(frozen=True)
class RunConfig(Checked, section="run"):
    """Length of a run, devices, and where results go."""

    out: str = "runs/model"
    """Run directory."""
    overwrite: bool = False
    """Replace a run that is there, once the new one has a model; resume goes on with it instead."""
    resume: bool = False
    """Go on after the run's last checkpoint, with the same data, model and loss; docs/training.md says what may
    change."""
    init_from: str | None = None
    """Start from the weights of another run (fine-tuning)."""
    seed: Seed = 0
    """Seed of the first weights and the order of batches."""
    members: Positive = 1
    """Train so many models that differ by their seed: an ensemble, in folders seed_0, seed_1, … of out, whose mean and
    spread `equicat predict` shows."""
    members_at_once: Positive = 1
    """Train up to so many models of an ensemble at the same time, each with its share of the cores, or one of the GPUs;
    faster than one after the other where a training alone cannot keep the machine busy."""
    batch_size: Positive = 16
    """Structures per batch and device (process)."""
    accumulate: Positive = 1
    """Batches whose gradients are averaged for one step of the optimiser."""
    edge_budget: Literal["auto"] | Positive | None = None
    """Fill batches up to so many edges within the cutoff instead of batch_size structures; null counts structures. auto
    takes as many edges as batch_size structures have on average, or as fit into memory, if these are fewer."""
    val_batch_size: Positive | None = None
    """Structures per validation batch; null takes batch_size."""
    max_epochs: Positive = 30
    """Passes over the training data."""
    max_steps: Positive | None = None
    """Stop after so many steps of the optimiser."""
    max_minutes: PositiveNumber | None = None
    """Stop after so many minutes of training."""
    val_every: Positive | Interval = 1
    """Validate after every so many epochs; or every "500 steps" or "30 minutes", and at the end of the run."""
    log_every: Interval | None = None
    """Write a row of metrics.csv after so many steps or minutes, too; each epoch and each validation writes one."""
    checkpoint_every: Interval = "15 minutes"
    """Save what a run is resumed from after so many steps or minutes, too; each row of metrics.csv does."""
    max_skipped_steps: Natural = 100
    """Skip so many steps whose loss or gradient is not finite, then stop and name their structures."""
    early_stopping: Positive | None = None
    """Stop after so many validations without a better val_loss; null never does."""
    dtype: Literal["float32", "float64"] = "float32"
    """Floating-point type of weights and features; energies are summed in float64."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of factors in float32 matrix products, whose sums stay float32: highest is float32, on a GPU with
    Triton also by products of half-precision halves where that is faster (EQUICAT_NATIVE=0 in the environment turns all
    such kernels off), high is TF32, medium bf16, these where the hardware has them. Kernels for processors know float32
    and float64 alone."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    devices: Literal["auto"] | Positive = "auto"
    """How many devices of this machine; several train data-parallel. auto: under torchrun or SLURM as many as it
    started processes, else all GPUs, or one CPU."""
    recompute: bool = False
    """Train with bounded memory: a few centres at a time, computed twice (networks without message passing)."""
    cuda_graphs: bool = True
    """Record steps and inferences of batches of up to 131,072 edges as CUDA graphs, where Triton kernels are used (an
    Allegro and s2ef on one GPU): small batches then do not wait for launches. The same numbers, to rounding."""
    num_workers: Annotated[int, Range(at_least=0, at_most=1024)] = 0
    """Processes that read structures and build neighbour lists; 0 does it in the training process."""
    wandb: bool = False
    """Log to Weights & Biases; offline unless an API key is set."""
    wandb_project: str = "equicat"
    """Project at Weights & Biases."""
    wandb_name: str | None = None
    """Name of the run at Weights & Biases; null is that of the run directory."""
    tensorboard: bool = False
    """Log to TensorBoard."""
    mlflow: bool = False
    """Log to MLflow: to the server that MLFLOW_TRACKING_URI names, else to ./mlruns."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.val_every, int) and self.val_every > self.max_epochs:
            raise InputError(
                f"run.val_every is {self.val_every} and run.max_epochs {self.max_epochs}; the model that is saved is "
                "the best one validated, so there must be at least one validation"
            )


@dataclass(frozen=True)
class PretrainingConfig(Checked, section="pretraining"):
    """Training on labels of a cheap calculator first, at the structures of the data and near them (s2ef).

    Gardner, Baker and Deringer, Mach. Learn.: Sci. Technol. 5, 015003 (2024), with a machine-learned potential as the
    source of labels.
    """

    calculator: str | None = None
    """ASE calculator that gives the labels, as in `equicat label`: module:factory, with plain keyword arguments if need
    be, such as tblite.ase:TBLite(method='GFN1-xTB',verbosity=0). null: no pretraining; nor with run.init_from."""
    n_structures: Positive = 3000
    """Structures that get labels: those for training, then copies of them with displaced atoms."""
    displacement: Annotated[float, Range(above=0, at_most=1)] = 0.04
    """Largest standard deviation (Å, along each axis) of a copy's displacements, which is drawn from 0 to this."""
    rate_factor: PositiveNumber = 1.0
    """Factor on optimizer.lr and optimizer.matrix_lr while pretraining."""
    max_steps: Positive | None = None
    """Pretrain for so many steps."""
    max_minutes: PositiveNumber | None = None
    """Pretrain for so many minutes, without those for labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calculator is not None and self.max_steps is None and self.max_minutes is None:
            raise InputError("pretraining: say how long, with pretraining.max_steps or pretraining.max_minutes")


@dataclass(frozen=True)
class TrainConfig(Checked):
    """Everything `equicat train` reads from its YAML file."""

    task: Literal["s2ef", "is2re", "is2rs"] = "s2ef"
    """s2ef: structure to energy and forces; is2re: initial structure to relaxed energy; is2rs: to relaxed structure."""
    data: DataConfig = field(default_factory=DataConfig)
    model: NetworkConfig = field(default_factory=AllegroConfig)
    """The network; `--model.name NAME --help` lists the options of another one."""
    output_mlp: tuple[Width, ...] = (128,)
    """Hidden widths of the maps from features to what is predicted."""
    output_nonlinearity: Literal["silu"] | None = "silu"
    """Nonlinearity between the matrices of these maps, for scalars; null as in the published Allegro."""
    initialization: Literal["equicat", "published"] = "equicat"
    """First weights of a new model: published draws them as Allegro's authors do, uniform (for the mixing of paths
    normal), those of the readout ten times larger (model.name allegro)."""
    force_head: DisplacementHead = "gradient"
    """S2EF: gradient, F = -dE/dr; any other makes direct forces, which are faster and not conservative: vector, pair,
    sum (GemNet-dT), magnitude-direction."""
    displacement_head: DisplacementHead | OwnHead = "vector"
    """How displacements are predicted: gradient, magnitude-direction, vector, pair or sum (docs/displacements.md), or a
    head of your own, MODULE:CLASS (docs/own_network.md)."""
    energy_head: Literal["mlp"] | OwnHead = MLP_HEAD
    """How relaxed energies (is2re, is2rs) are predicted: a map of features, mlp, or a head of your own, MODULE:CLASS
    (docs/own_network.md)."""
    energy_atoms: EnergyAtoms = "all"
    """Relaxed energies (is2re, is2rs) are a sum over all atoms, or over the adsorbate's (tag 2), which is for
    adsorption energies: a clean slab then has exactly 0."""
    linear_share: Share = 0.0
    """Share in relaxed energies of a linear model that sees the adsorbate's elements and those of the nearest slab
    atoms; it is fitted beside the network, for small data sets with energy_atoms adsorbate."""
    long_range: LongRange = field(default_factory=LongRange)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    normalization: NormalizationConfig = field(default_factory=NormalizationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value in (
            ("initialization", self.initialization),
            ("optimizer.parametrization", self.optimizer.parametrization),
        ):
            if value == "published" and self.model.name != "allegro":
                raise InputError(
                    f"{option} is published, which is for model.name allegro, but that is {self.model.name}; "
                    "leave it out"
                )
        norm = self.normalization
        for name, scale in {"scale": norm.scale, "displacement_scale": norm.displacement_scale}.items():
            if scale == "fit" and self.run.init_from is None:
                raise InputError(
                    f"normalization.{name} is fit, which is for the scale of a model that is fine-tuned; give "
                    "run.init_from, or leave it out"
                )
        if self.long_range.smearing is not None:
            if self.task != "s2ef":
                raise InputError(f"long_range is for energies and forces (task s2ef); leave it out for {self.task}")
            check_long_range(self.force_head, self.run.recompute)
        if self.linear_share and self.energy_atoms != "adsorbate":
            raise InputError("linear_share is for relaxed energies with energy_atoms adsorbate; leave it out")
        if self.task == "s2ef":
            if self.energy_head != MLP_HEAD:
                raise InputError("energy_head is for the tasks is2re and is2rs; leave it out for s2ef")
            if self.energy_atoms != "all":
                raise InputError("energy_atoms is for the tasks is2re and is2rs; leave it out for s2ef")
            if self.noise.share:
                raise InputError("noise.share is for the tasks is2re and is2rs; leave it out for s2ef")
            if self.loss.displacement_weight:
                raise InputError("loss.displacement_weight is for the tasks is2re and is2rs; leave it out for s2ef")
            if self.normalization.displacement_scale is not None:
                raise InputError("normalization.displacement_scale is for is2re and is2rs; leave it out for s2ef")
        elif self.pretraining.calculator is not None:
            raise InputError(f"pretraining is for the task s2ef; leave it out for {self.task}")
        elif self.data.also_forces_weight:
            raise InputError(f"data.also_forces_weight is for the task s2ef; leave it out for {self.task}")
        elif self.run.recompute:
            raise InputError(f"run.recompute is for energies and forces (task s2ef); leave it out for {self.task}")
        elif self.loss.stress_weight:
            raise InputError(f"loss.stress_weight is for the task s2ef; leave it out for {self.task}")
        if ":" in self.displacement_head:
            find_vector_head(self.displacement_head)
        if self.energy_head != MLP_HEAD:
            find_energy_head(self.energy_head)
        if self.loss.stress != "mae" and not self.loss.stress_weight:
            raise InputError("loss.stress is the form of the stress loss, but loss.stress_weight is 0; leave one out")
        if self.run.members > 1 and self.run.init_from is not None:
            raise InputError(
                "run.members differ by their first weights, which run.init_from takes from one run; train that many "
                "runs first, and tune each"
            )


_parsers: dict[frozenset[tuple[str, str]], Parser] = {}
"""Parsers that have read a configuration, by the names in its parts: to find the options takes longer than to read."""


def from_mapping(values: Mapping[str, Any], source: str = "") -> TrainConfig:
    """A configuration from mappings and lists by part and option, as YAML holds it.

    Args:
        values: numbers and booleans may be text; ``data`` may be a path, see :func:`data_options`.
        source: where they come from, for messages.

    Raises:
        InputError: for an unknown key, or a value that is not what the option may be.
    """
    values = with_data(values)
    chosen = frozenset(chosen_in(values).items())
    parser = _parsers.get(chosen) or Parser(TrainConfig)
    parser.explains = False
    config = TrainConfig(**parser.instantiate(parser.read(values, source)).as_dict())
    if not any(":" in name for _, name in chosen):  # a module of one's own may be another the next time
        _parsers[chosen] = parser
    return config


def with_data(values: Mapping[str, Any], path: str | None = None) -> dict[str, Any]:
    """A configuration with the data of a path, the one given or else what ``data`` is, in their options."""
    data = values.get("data")
    options = dict(data) if isinstance(data, Mapping) else {}
    path = data if path is None and isinstance(data, str) else path
    return {**values} if path is None else {**values, "data": options | data_options(path)}


def as_yaml(config: TrainConfig) -> str:
    """A configuration with all its options, as a file that `equicat train` takes."""
    return yaml.safe_dump(plain(asdict(config)), sort_keys=False)
