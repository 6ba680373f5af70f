"""Run directories: a trained model as weights (safetensors) and plain JSON; loading runs no code from the file."""

import dataclasses
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from safetensors.torch import load_file, save_file

from equicat.direct import DirectModel
from equicat.errors import InputError
from equicat.files import read_json, replace_json, replacing_file
from equicat.heads import DisplacementHead
from equicat.models.networks import NetworkConfig, architecture, with_neighbors
from equicat.models.zbl import Repulsion
from equicat.potential import AtomisticModel, EnergyTerms, Potential
from equicat.statistics import Statistics
from equicat.store import DatasetInfo

FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, beside its weights."""

    task: str
    model: NetworkConfig
    output_mlp: tuple[int, ...]
    dtype: str
    energy_reference: str
    """adsorption, total or relative: which energy the model predicts."""
    statistics: Statistics
    """Of the training data."""
    outputs: tuple[str, ...] = ("energy", "forces")
    """What it predicts: energy and forces, or relaxed_energy, displacements or both."""
    displacement_head: DisplacementHead | None = None
    force_head: DisplacementHead = "gradient"
    dataset_references: dict[str, float] = field(default_factory=dict)
    """Energies (eV) that the data set had subtracted, by what they belong to."""
    terms: EnergyTerms = field(default_factory=EnergyTerms)

    @property
    def element_symbols(self) -> list[str]:
        return [chemical_symbols[z] for z in self.statistics.elements]


def build(
    info: ModelInfo, scale: float = 1.0, displacement_scale: float = 1.0, references: tuple[float, ...] | None = None
) -> Potential | DirectModel:
    """An untrained model of that description."""
    config, elements = with_neighbors(info.model, info.statistics.avg_num_neighbors), info.statistics.elements
    model: Potential | DirectModel
    if "forces" in info.outputs:
        model = Potential(config, elements, info.output_mlp, scale, references, info.terms, info.force_head)
    else:
        model = DirectModel(
            config,
            elements,
            info.output_mlp,
            energy="relaxed_energy" in info.outputs,
            displacement_head=info.displacement_head,
            scale=scale,
            displacement_scale=displacement_scale,
            reference_energies=references,
        )
    model.info = dataclasses.replace(info, model=config)
    return model.to(getattr(torch, info.dtype))


def save(run: str | Path, model: AtomisticModel, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write ``model.safetensors`` and ``model.json``, each complete or not at all.

    Args:
        run: the run directory.
        model: to save, with its description.
        state: weights to write instead of the model's own (an average of them, say).
    """
    # Copies, because safetensors refuses weights under two names (SchNet's filters).
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in (state or model.state_dict()).items()}
    with replacing_file(Path(run) / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "equicat"})
    replace_json(Path(run) / DESCRIPTION, {"format_version": FORMAT_VERSION, **asdict(model.info)})


def load_info(run: str | Path) -> ModelInfo:
    """The description of a run's model.

    Raises:
        InputError: if the run has none, or it is of a newer format.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run directory; `equicat train` writes one")
    for name in (DESCRIPTION, WEIGHTS):
        if not (run / name).is_file():
            found = ", ".join(sorted(p.name for p in run.iterdir())) or "nothing"
            raise InputError(
                f"{run}: has no {name}, so there is no trained model in it (found {found}); train it first"
            )
    values: dict[str, Any] = read_json(run / DESCRIPTION)
    if values.pop("format_version", None) != FORMAT_VERSION:
        raise InputError(f"{run / DESCRIPTION}: written by another version of equicat; update equicat")
    try:
        values["model"] = architecture(values["model"]["name"]).config(**_tuples(values["model"]))
        values["statistics"] = Statistics(**_tuples(values["statistics"]))
        if "terms" in values:
            values["terms"] = _terms(values["terms"])
        return ModelInfo(**_tuples(values))
    except (KeyError, TypeError) as error:
        raise InputError(f"{run / DESCRIPTION}: damaged ({error}); train again or restore the file") from error


def load(run: str | Path, device: str | torch.device = "cpu") -> Potential | DirectModel:
    """The trained model of a run, in evaluation mode.

    Args:
        run: run directory.
        device: where to put it.

    Returns:
        A potential (S2EF) or a direct model (IS2RE, IS2RS); call it with a :class:`~equicat.batch.Batch`. ``.info``
        tells its task, elements and ``energy_reference``.

    Raises:
        InputError: if the run holds no weights, or they do not fit the description.
    """
    info = load_info(run)
    model = build(info)
    try:
        model.load_state_dict(load_file(Path(run) / WEIGHTS))
    except Exception as error:  # safetensors and PyTorch each have errors of their own
        raise InputError(f"{Path(run) / WEIGHTS}: does not fit {DESCRIPTION} ({error})") from error
    return model.to(device).eval().requires_grad_(False)


def load_potential(run: str | Path, device: str | torch.device = "cpu") -> Potential:
    """The same, of a run that was trained for energies and forces.

    Raises:
        InputError: also if the model predicts relaxed energies or structures directly.
    """
    model = load(run, device)
    if not isinstance(model, Potential):
        raise InputError(f"{run}: trained for {model.info.task}, which gives no forces; use a model trained for s2ef")
    return model


def check_energy_reference(info: ModelInfo, dataset: DatasetInfo, where: str | Path) -> None:
    """Refuse to compare two different kinds of energy.

    Raises:
        InputError: naming both.
    """
    if dataset.energy_reference != info.energy_reference and info.outputs != ("displacements",):
        raise InputError(
            f"{where}: its energies are {dataset.energy_reference!r}, the model predicts {info.energy_reference!r} "
            "ones; the two cannot be mixed (for structure files, say which they are)"
        )


def environment() -> dict[str, Any]:
    """Versions, commit and machine, for ``environment.json``."""
    versions = {}
    for name in ("equicat", "torch", "lightning", "e3nn", "ase", "vesin", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed as a package"
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "versions": versions,
        "commit": commit,
        "python": platform.python_version(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "threads": torch.get_num_threads()},
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _terms(values: dict[str, Any]) -> EnergyTerms:
    if values["repulsion"] is not None:
        values["repulsion"] = Repulsion(**_tuples(values["repulsion"]))
    return EnergyTerms(**_tuples(values))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where dataclasses have tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
