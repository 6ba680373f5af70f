"""`equicat convert`: models of other packages as runs of ours, with the same energies and forces."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from ase.data import atomic_numbers
from jaxtyping import Shaped
from numpy import ndarray
from torch import Tensor

from equicat.data.fitted import Statistics
from equicat.errors import InputError
from equicat.files import replacing_directory
from equicat.interfaces import nequip_allegro_extract as peer
from equicat.kernels.irreps import Irrep, Parity, couples, harmonics, layer_irreps
from equicat.models import saved
from equicat.models.gradient import DEFAULTS, ComputeOptions
from equicat.models.model import ModelInfo
from equicat.models.potential import Potential
from equicat.models.repulsion import COULOMB, EnergyTerms, Repulsion
from equicat.networks.allegro import NequipAllegroConfig

Arrays = Mapping[str, Shaped[ndarray, "..."]]


def convert(
    source: str | Path,
    out: str | Path,
    energy_reference: Literal["adsorption", "total", "relative"] = "total",
    peer_python: str | None = None,
) -> None:
    """Write a run directory with the model of a nequip-allegro checkpoint or package, and a configuration to tune it.

    Args:
        source: Checkpoint (.ckpt) or package (.nequip.zip). Both hold pickles: trust their source.
        out: Run directory to write.
        energy_reference: Which energy the model was trained on.
        peer_python: Interpreter of an environment that has nequip-allegro. Default: this one (extra [bench]).

    Raises:
        InputError: for a missing file, an environment without the package, or a model that ours cannot be.
    """
    if not Path(source).is_file():
        raise InputError(
            f"{source}: no such file; give a checkpoint (.ckpt) or package (.nequip.zip) of nequip-allegro"
        )
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "model.npz"
        python, reason = run_beside(peer.__file__, peer_python, Path(source).resolve(), arrays)
        if reason:
            raise InputError(f"{source}: {python} could not read it ({reason}); it needs nequip-allegro, see --help")
        model = potential(*read_arrays(arrays), energy_reference)
    with replacing_directory(Path(out)) as directory:
        saved.save(directory, model)
        text = yaml.safe_dump(tuning(model, out), sort_keys=False)
        (directory / "finetune.yaml").write_text(text, encoding="utf-8")


def run_beside(program: str, peer_python: str | None, *arguments: Path) -> tuple[str, str]:
    """Run a program in the environment of nequip-allegro.

    Args:
        program: the file.
        peer_python: interpreter of that environment; None: this one.
        arguments: of the program.

    Returns:
        The interpreter, and the reason why the program failed, empty if it did not.

    Raises:
        InputError: if there is no such interpreter.
    """
    python = peer_python or sys.executable
    try:
        done = subprocess.run(
            [python, "-I", program, *map(str, arguments)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise InputError(f"--peer_python {peer_python}: {error.strerror}; give a Python interpreter") from error
    reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
    return python, reason if done.returncode else ""


def tuning(model: Potential, run: str | Path) -> dict[str, Any]:
    """The part of a configuration that trains on from that run; the data are missing, and the new run's directory."""
    network = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(model.info.network).items()}
    start = {"init_from": str(run), "dtype": model.info.dtype}
    return {"task": "s2ef", "model": network, "output_mlp": list(model.info.output_mlp), "run": start}


def read_arrays(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Description and arrays of a model, from a file that :mod:`equicat.interfaces.nequip_allegro_extract` wrote."""
    with np.load(path) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("about"))), arrays


def potential(
    about: Mapping[str, Any],
    arrays: Arrays,
    energy_reference: str = "total",
    compute: ComputeOptions = DEFAULTS,
) -> Potential:
    """The potential from description and arrays; see :func:`equicat.interfaces.nequip_allegro_extract.extract`.

    Raises:
        InputError: if the model has a part that ours lacks.
    """
    order = _species_order(about["type_names"])
    elements = tuple(atomic_numbers[about["type_names"][k]] for k in order)
    norms = arrays["env_norm"].ravel()
    avg_num_neighbors = float(np.mean(norms**-2.0))
    config = _config(about, arrays, order, avg_num_neighbors)
    readout = _mlp(about, arrays, "readout")
    scales, shifts = (_by_element(arrays[name], order, empty) for name, empty in (("scales", 1.0), ("shifts", 0.0)))
    scale = float(np.sqrt(np.mean(scales**2)))
    sums = _by_element(arrays["sum_norm"], order, 1.0)
    factors = scales / scale * sums * math.sqrt(avg_num_neighbors)
    terms = EnergyTerms(
        None if np.allclose(factors, 1, rtol=1e-15, atol=0) else tuple(factors.tolist()), _repulsion(about, config)
    )
    info = ModelInfo(
        task="s2ef",
        network=config,
        output_mlp=tuple(m.shape[1] for m in readout[1:-1]),
        dtype=about["dtype"],
        energy_reference=energy_reference,
        statistics=Statistics(elements, math.nan, tuple(shifts.tolist()), scale, avg_num_neighbors),
        terms=terms,
    )
    model = saved.build(info, compute=compute)
    assert isinstance(model, Potential)
    model.double().load_state_dict(_weights(model, about, arrays, order, readout) | _energies(scale, shifts))
    return model.to(getattr(torch, about["dtype"])).eval().requires_grad_(False)


def _energies(scale: float, shifts: ndarray) -> dict[str, Tensor]:
    return {"scale": torch.tensor(scale, dtype=torch.float64), "reference_energies": torch.from_numpy(shifts)}


def _species_order(names: list[str]) -> list[int]:
    """Where the package has the elements that we keep by ascending atomic number."""
    unknown = [name for name in names if name not in atomic_numbers]
    if unknown:
        raise InputError(f"its atom types {', '.join(unknown)} are not chemical symbols; equicat knows elements only")
    return sorted(range(len(names)), key=lambda k: atomic_numbers[names[k]])


def _by_element(values: ndarray, order: list[int], empty: float) -> ndarray:
    """One value for each element in our order: the package keeps none, one for all, or one each."""
    flat = values.ravel() if values.size else np.array([empty])
    return flat[order] if flat.size == len(order) else np.repeat(flat, len(order))


def _by_pair(values: ndarray, order: list[int]) -> ndarray:
    """Rows of ordered pairs of elements in our order."""
    n = len(order)
    return values.reshape(n, n, -1)[np.ix_(order, order)].reshape(n * n, -1)


def _mlp(about: Mapping[str, Any], arrays: Arrays, name: str) -> list[ndarray]:
    """The matrices of an MLP; without activation they are one."""
    matrices: list[ndarray] = []
    while f"{name}.{len(matrices)}" in arrays:
        matrices.append(arrays[f"{name}.{len(matrices)}"])
    activations = about["activations"][name]
    if set(activations) - {"SiLU"}:
        raise InputError(f"its {name} has the nonlinearity {activations[0]}; equicat knows silu")
    if not activations and len(matrices) > 1:
        return [np.linalg.multi_dot(matrices)]
    return matrices


def _integer(name: str, value: float) -> int:
    if value != int(value):
        raise InputError(f"its {name} is {value}; equicat knows integers")
    return int(value)


def _config(
    about: Mapping[str, Any], arrays: Arrays, order: list[int], avg_num_neighbors: float
) -> NequipAllegroConfig:
    if not about["weights_by_irrep"]:
        raise InputError("its weight_individual_irreps is False; equicat knows weights for each degree only")
    n_layers = len(about["irreps"])
    l_max = max(degree for degree, _ in _irreps(about["irreps"][0][0]))
    two_body, latents = _mlp(about, arrays, "two_body"), [_mlp(about, arrays, f"latent.{k}") for k in range(n_layers)]
    readout = _mlp(about, arrays, "readout")
    if len(latents[0]) == 1:
        raise InputError("its Allegro layers have linear MLPs; equicat knows those with a hidden layer")
    cutoffs, norms = arrays["inverse_cutoff"], arrays["env_norm"]
    spline = about["radial"] == "spline"
    options: dict[str, Any] = (
        {"spline_span": about["span"]}
        if spline
        else {
            "bessel_trainable": about["bessel_trainable"],
            "envelope_p": _integer("polynomial_cutoff_p", about["envelope_p"]),
        }
    )
    return NequipAllegroConfig(
        cutoff=about["r_max"],
        pair_cutoffs=None if cutoffs.size == 1 else tuple((1 / _by_pair(cutoffs, order)).ravel().tolist()),
        n_layers=n_layers,
        l_max=l_max,
        parity=_parity(about["irreps"], l_max),
        n_scalars=about["n_scalars"],
        tensor_channels=about["channels"],
        coupling="channel" if about["coupling"] else "path",
        radial=about["radial"],
        n_radial=about["n_radial"],
        embedding_width=two_body[0].shape[0],
        two_body_hidden=tuple(m.shape[1] for m in two_body[:-1]),
        latent_hidden=tuple(m.shape[1] for m in latents[0][:-1]),
        n_features=readout[0].shape[1],
        features_silu=len(readout) > 1,
        avg_num_neighbors=avg_num_neighbors,
        neighbors_of_element=None if norms.size == 1 else tuple((norms.ravel()[order] ** -2.0).tolist()),
        **options,
    )


def _irreps(text: str) -> list[Irrep]:
    """``1x0e+1x1o`` as degrees and parities."""
    names = [term.split("x")[-1].strip() for term in text.split("+")]
    return [(int(name[:-1]), 1 if name[-1] == "e" else -1) for name in names]


def _parity(layers: list[list[str]], l_max: int) -> Parity:
    """Which of ours has the same tensor features in every layer."""
    entering = [set(_irreps(layer[0])) for layer in layers]
    options: tuple[Parity, ...] = ("full", "restricted")
    for parity in options:
        if [set(irreps) for irreps in layer_irreps(l_max, len(layers), parity)] == entering:
            return parity
    raise InputError(f"its tensor features {[layer[0] for layer in layers]} are a choice that equicat does not have")


def _repulsion(about: Mapping[str, Any], config: NequipAllegroConfig) -> Repulsion | None:
    if "pair_potential" not in about:
        return None
    if "zbl_p" not in about:
        raise InputError(f"its pair potential {about['pair_potential']} is unknown to equicat, which has ZBL")
    if not math.isclose(2 * about["zbl_prefactor"], COULOMB, rel_tol=1e-9):
        raise InputError("its ZBL potential is not in eV and Å (units: metal); equicat works in these")
    p = _integer("polynomial_cutoff_p of ZBL", about["zbl_p"])
    return Repulsion(p, config.pair_cutoffs or (config.cutoff,))


def _weights(
    model: Potential, about: Mapping[str, Any], arrays: Arrays, order: list[int], readout: list[ndarray]
) -> dict[str, Tensor]:
    """The state of the network and the head."""
    config = model.config
    assert isinstance(config, NequipAllegroConfig)
    n, channels = config.n_scalars, config.tensor_channels

    def by_degree(matrix: ndarray) -> ndarray:
        """Columns (channel, degree) as (degree, channel)."""
        return matrix.reshape(len(matrix), channels, -1).transpose(0, 2, 1).reshape(len(matrix), -1)

    def scalars_first(matrix: ndarray) -> ndarray:
        return np.concatenate([matrix[:, :n], by_degree(matrix[:, n:])], axis=1)

    found: dict[str, ndarray] = {
        "tensor_weights": by_degree(arrays["tensor_weights.0"]),
        "projection": scalars_first(arrays["projection.0"]),
        "readout": readout[0],
    }
    if config.radial == "spline":
        rows = _by_pair(arrays["spline"], order).reshape(-1, config.width, config.n_radial)
        found["embedding.weight"] = rows.transpose(0, 2, 1)
    else:
        found |= {f"embedding.{name}": arrays[name][order] for name in ("center", "neighbor")}
        found["embedding.radial"] = arrays["radial.0"]
        found["basis.frequencies"] = math.pi * arrays["bessel"].ravel()
    found |= {f"two_body_mlp.weights.{k}": m for k, m in enumerate(_mlp(about, arrays, "two_body"))}
    for k, names in enumerate(about["irreps"]):
        *hidden, last = _mlp(about, arrays, f"latent.{k}")
        matrices = [*hidden, scalars_first(last)]
        found |= {f"layers.{k}.latent_mlp.weights.{i}": m for i, m in enumerate(matrices)}
        # The package's paths run over its own order of irreps: output, then tensor features, then environment.
        entering, _, leaving = (_irreps(text) for text in names)
        at = [(c, a, b) for c in leaving for a in entering for b in harmonics(config.l_max) if couples(a, b, c)]
        ours = [(c, a, b) for c, paths in model.network.layers[k].product.paths.items() for a, b in paths.pairs]
        found[f"layers.{k}.product.weight"] = arrays[f"paths.{k}"].reshape(-1, len(at))[:, [at.index(p) for p in ours]]
    # A pair is counted from both its ends: the package divides by sqrt(2).
    head = readout[1:] or [np.ones((1, 1))]
    head = [*head[:-1], head[-1] / math.sqrt(2)]
    state = {f"network.{name}": array for name, array in found.items()}
    state |= {f"head.mlp.weights.{k}": m for k, m in enumerate(head)}
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
