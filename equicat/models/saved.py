"""Run directories: a trained model as weights (safetensors) and plain JSON; loading runs no code from the file."""

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from equicat.data.fitted import Domain, Statistics
from equicat.errors import InputError
from equicat.files import replace_json, replacing_file
from equicat.models.devices import torch_device
from equicat.models.direct import DirectHeads, DirectModel
from equicat.models.electrostatics import LongRange
from equicat.models.ensemble import MeanDirectModel, MeanPotential
from equicat.models.gradient import DEFAULTS, ComputeOptions
from equicat.models.heads import MLP_HEAD, OutputMLP
from equicat.models.model import AtomisticModel, ModelInfo
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.models.uncertainty import Grade
from equicat.networks.catalogue import architecture, with_neighbors
from equicat.run_directory import DESCRIPTION, FORMAT_VERSION, GRADE, WEIGHTS, members_of, read_description


def build(
    info: ModelInfo,
    scale: float = 1.0,
    displacement_scale: float = 1.0,
    references: tuple[float, ...] | None = None,
    compute: ComputeOptions = DEFAULTS,
) -> Potential | DirectModel:
    """An untrained model of that description.

    Args:
        info: the description.
        scale: unit of the network's energies, eV.
        displacement_scale: unit of the network's displacements, Å.
        references: energy of each element, eV, ascending by atomic number; zeros by default.
        compute: how a potential computes derivatives.
    """
    config, elements = with_neighbors(info.network, info.statistics.avg_num_neighbors), info.statistics.elements
    output = OutputMLP(info.output_mlp, linear=info.output_nonlinearity is None)
    model: Potential | DirectModel
    if "forces" in info.outputs:
        model = Potential(config, elements, output, scale, references, info.terms, info.force_head, compute)
    else:
        energy = info.energy_head if "relaxed_energy" in info.outputs else None
        model = DirectModel(
            config,
            elements,
            output,
            DirectHeads(energy, info.energy_atoms, info.displacement_head, info.linear_share),
            scale=scale,
            displacement_scale=displacement_scale,
            reference_energies=references,
        )
    model.info = dataclasses.replace(info, network=config)
    return model.to(getattr(torch, info.dtype))


def save(run: str | Path, model: AtomisticModel, state: dict[str, Shaped[Tensor, "..."]] | None = None) -> None:
    """Write ``model.safetensors`` and ``model.json``, each complete or not at all.

    Args:
        run: the run directory.
        model: to save, with its description.
        state: weights to write instead of the model's own (an average of them, say).
    """
    # Copies, because safetensors refuses weights under two names (SchNet's filters).
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in (state or model.state_dict()).items()}
    with replacing_file(Path(run) / WEIGHTS) as temporary:
        # Written by Python, so that a full disk is an OSError, which callers know how to report.
        temporary.write_bytes(as_bytes(tensors, metadata={"format": "equicat"}))
    save_info(run, model.info)


def save_info(run: str | Path, info: ModelInfo) -> None:
    """Write ``model.json``, complete or not at all."""
    description = asdict(info)
    # Defaults of what earlier versions do not know are left out, so that these read the file.
    if info.long_range == LongRange():
        del description["terms"]["long_range"]
    if info.energy_head == MLP_HEAD:
        del description["energy_head"]
    if not info.linear_share:
        del description["linear_share"]
    # The hyperparameters of the network stand under the name that they have in a configuration.
    description = {"format_version": FORMAT_VERSION, "model": description.pop("network"), **description}
    replace_json(Path(run) / DESCRIPTION, description)


def load_info(run: str | Path) -> ModelInfo:
    """The description of a run's trained model.

    Raises:
        InputError: if the run has no model, or its description is damaged or of a newer format.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: no such run directory; `equicat train` writes one")
    first = members_of(run)[0]
    if first != run:
        raise InputError(f"{run}: the folder of an ensemble; name one of its models, such as {first}")
    for name in (DESCRIPTION, WEIGHTS):
        if not (run / name).is_file():
            found = ", ".join(sorted(p.name for p in run.iterdir())) or "nothing"
            raise InputError(
                f"{run}: has no {name}, so there is no trained model in it (found {found}); train it first"
            )
    return read_info(run)


def read_info(run: Path) -> ModelInfo:
    """Description of a run's model in ``model.json``, whether or not weights are there.

    Raises:
        InputError: if it is missing, damaged or of a newer format.
    """
    values = read_description(run / DESCRIPTION)
    if values.pop("format_version", None) != FORMAT_VERSION:
        raise InputError(f"{run / DESCRIPTION}: written by another version of equicat; update equicat")
    try:
        network = values.pop("model")
        values["network"] = architecture(network["name"]).config(**_tuples(network))
        values["statistics"] = Statistics(**_tuples(values["statistics"]))
        if "terms" in values:
            values["terms"] = _terms(values["terms"])
        if values.get("domain") is not None:
            values["domain"] = Domain(**_tuples(values["domain"]))
        return ModelInfo(**_tuples(values))
    except (KeyError, TypeError) as error:
        raise InputError(f"{run / DESCRIPTION}: damaged ({error}); train again or restore the file") from error


def load(
    run: str | Path, device: str | torch.device = "cpu", compute: ComputeOptions = DEFAULTS
) -> Potential | DirectModel:
    """The trained model of a run, or the mean of those of an ensemble, in evaluation mode.

    Args:
        run: run directory, or the folder of an ensemble (:func:`equicat.run_directory.members_of`).
        device: where to put it: auto, cpu, cuda or cuda:N.
        compute: how a potential computes derivatives.

    Returns:
        A potential (S2EF) or a direct model (IS2RE, IS2RS); call it with a :class:`~equicat.data.batch.Batch`.
        ``.info`` tells its task, elements and ``energy_reference``.

    Raises:
        InputError: if the run holds no weights, they do not fit the description, the device is not there, or models of
            an ensemble do not go together.
    """
    models = [load_one(member, device, compute) for member in members_of(run)]
    if len(models) == 1:
        return models[0]
    kind = MeanPotential if isinstance(models[0], Potential) else MeanDirectModel
    return kind(models).eval()


def load_one(
    run: str | Path, device: str | torch.device = "cpu", compute: ComputeOptions = DEFAULTS
) -> Potential | DirectModel:
    """The trained model of a run that is not the folder of an ensemble; see :func:`load`."""
    info = load_info(run)
    model = build(info, compute=compute)
    try:
        model.load_state_dict(load_file(Path(run) / WEIGHTS))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{Path(run) / WEIGHTS}: does not fit {DESCRIPTION} ({reason})") from error
    if (Path(run) / GRADE).is_file():
        model.grade = Grade.load(Path(run) / GRADE)
    return model.to(torch_device(device)).eval().requires_grad_(False)


def load_potential(
    run: str | Path, device: str | torch.device = "cpu", compute: ComputeOptions = DEFAULTS
) -> Potential:
    """The model of a run that was trained for energies and forces, as :func:`load` gives it.

    Raises:
        InputError: as :func:`load`, and if the model predicts relaxed energies or structures directly.
    """
    model = load(run, device, compute)
    if not isinstance(model, Potential):
        raise InputError(f"{run}: trained for {model.info.task}, which gives no forces; use a model trained for s2ef")
    return model


def _terms(values: dict[str, Any]) -> EnergyTerms:
    if values["repulsion"] is not None:
        values["repulsion"] = Repulsion(**_tuples(values["repulsion"]))
    if "long_range" in values:
        values["long_range"] = LongRange(**values["long_range"])
    return EnergyTerms(**_tuples(values))


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Lists, which JSON has where dataclasses have tuples, as tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
