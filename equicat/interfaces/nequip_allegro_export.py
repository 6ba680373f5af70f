"""Models of ours as packages of nequip-allegro, for that package's own programs: LAMMPS with Kokkos, OpenMM, ASE.

The inverse of :mod:`equicat.interfaces.nequip_allegro`: :func:`describe` gives the description and the arrays that
:func:`~equicat.interfaces.nequip_allegro.potential` reads, and the arguments of the package's builder of models.
"""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replacing_file
from equicat.interfaces import nequip_allegro_build as peer
from equicat.interfaces.agreement import compare, examples
from equicat.interfaces.nequip_allegro import Arrays, run_beside
from equicat.kernels.irreps import SCALAR, Irrep, couples, harmonics, layer_irreps
from equicat.models.potential import Potential
from equicat.models.repulsion import COULOMB
from equicat.networks.allegro import NequipAllegroConfig

SUFFIX = ".nequip.zip"


def export(potential: Potential, out: Path, peer_python: str | None = None) -> None:
    """Write a package that nequip-allegro's programs accept, once it gives the numbers of the model.

    Args:
        potential: of the architecture ``nequip-allegro``.
        out: file to write, ``….nequip.zip``.
        peer_python: interpreter of an environment that has nequip-allegro; default: this one (extra [bench]).

    Raises:
        InputError: for a model that the package cannot express, an environment without the package, or numbers that
            differ.
    """
    if not out.name.endswith(SUFFIX):
        raise InputError(f"{out}: a package of nequip-allegro is called ….nequip.zip; give such a name")
    about, arrays, arguments = describe(potential)
    structures = examples(potential, 3)
    with replacing_file(out) as temporary, tempfile.TemporaryDirectory() as folder:
        source, checks = Path(folder) / "model.npz", Path(folder) / "checks.npz"
        texts = {"about": np.array(json.dumps(about)), "arguments": np.array(json.dumps(arguments))}
        np.savez(source, allow_pickle=False, **arrays, **texts, **_stacked(structures))
        python, reason = run_beside(peer.__file__, peer_python, source, temporary.resolve(), checks)
        if reason:
            raise InputError(f"{python} could not make the package ({reason}); it needs nequip-allegro, see --help")
        with np.load(checks) as found:
            compare(potential, structures, found["energy"], found["forces"])


def _stacked(structures: Sequence[Structure]) -> dict[str, ndarray]:
    found = {name: np.concatenate([getattr(s, name) for s in structures]) for name in ("numbers", "positions")}
    found |= {name: np.stack([getattr(s, name) for s in structures]) for name in ("cell", "pbc")}
    return found | {"n_atoms": np.array([len(s) for s in structures])}


def describe(potential: Potential) -> tuple[dict[str, Any], Arrays, dict[str, Any]]:
    """Description and arrays as :func:`nequip_allegro_extract.extract` gives them, and the builder's arguments.

    Raises:
        InputError: for a model that the package cannot express.
    """
    config = potential.config
    if not isinstance(config, NequipAllegroConfig):
        raise InputError(
            f"this model is {config.name}; the package has another architecture, here model.name nequip-allegro"
        )
    if potential.direct_forces is not None:
        raise InputError("this model has direct forces; nequip-allegro has forces that are derivatives")
    if potential.long_range is not None:
        raise InputError("this model has latent charges (long_range), which nequip-allegro does not have")
    if config.radial == "spline" and config.spline_span > config.n_radial:
        raise InputError(
            f"model.spline_span is {config.spline_span} and model.n_radial {config.n_radial}; nequip-allegro wants at "
            "least as many splines as overlap"
        )
    names = potential.info.element_symbols
    n = len(names)
    about: dict[str, Any] = {
        "type_names": names,
        "dtype": str(potential.dtype).removeprefix("torch."),
        "r_max": config.cutoff,
        "radial": config.radial,
        "n_radial": config.n_radial,
        "n_scalars": config.n_scalars,
        "channels": config.tensor_channels,
        "weights_by_irrep": True,
        "coupling": config.coupling == "channel",
        "irreps": _layer_irreps(config),
    }
    about |= {"span": config.spline_span} if config.radial == "spline" else {}
    if config.radial == "bessel":
        about |= {"bessel_trainable": config.bessel_trainable, "envelope_p": float(config.envelope_p)}
    with torch.no_grad():
        mlps = _mlps(potential, config)
        arrays = _arrays(potential, config, mlps)
    about["activations"] = {name: ["SiLU"] * (len(matrices) - 1) for name, matrices in mlps.items()}
    arguments = _arguments(about, config, mlps)
    neighbors = np.array(config.neighbors_of_element or [potential.avg_num_neighbors])
    arrays["sum_norm"] = arrays["env_norm"] = neighbors.reshape(-1, 1) ** -0.5
    factors = np.ones(n) if potential.factor_bits is None else potential.factor_bits.view(torch.float64).cpu().numpy()
    arrays["scales"] = float(potential.scale) * factors * np.sqrt(np.resize(neighbors, n) / potential.avg_num_neighbors)
    arrays["shifts"] = potential.reference_energies.cpu().numpy().copy()
    by_type = {"avg_num_neighbors": neighbors, "per_type_energy_scales": arrays["scales"]}
    for name, values in (by_type | {"per_type_energy_shifts": arrays["shifts"]}).items():
        each = dict(zip(names, values.tolist(), strict=False))
        arguments[name] = each if len(values) == n else float(values[0])
    _add_repulsion(potential, config, about, arguments)
    return about, arrays, arguments


def _layer_irreps(config: NequipAllegroConfig) -> list[list[str]]:
    """Irreps of tensor features, environment and result of each layer, as the package orders and writes them."""
    entering = layer_irreps(config.l_max, config.n_layers, config.parity)
    leaving = [*entering[1:], [SCALAR]]
    return [[_text(a), _text(harmonics(config.l_max)), _text(b)] for a, b in zip(entering, leaving, strict=True)]


def _ordered(irreps: Sequence[Irrep]) -> list[Irrep]:
    """By degree, even ones first."""
    return sorted(irreps, key=lambda irrep: (irrep[0], -irrep[1]))


def _text(irreps: Sequence[Irrep]) -> str:
    return "+".join(f"1x{degree}{'e' if parity == 1 else 'o'}" for degree, parity in _ordered(irreps))


def _mlps(potential: Potential, config: NequipAllegroConfig) -> dict[str, list[Tensor]]:
    """The matrices of each MLP of the package."""
    network, n = potential.network, config.n_scalars

    def by_channel(matrix: Tensor) -> Tensor:
        """Columns (degree, channel) as (channel, degree)."""
        return matrix.unflatten(1, (-1, config.tensor_channels)).transpose(1, 2).flatten(1)

    def scalars_first(matrix: Tensor) -> Tensor:
        rest = matrix[:, n:]
        return torch.cat([matrix[:, :n], by_channel(rest)], dim=1) if rest.shape[1] else matrix

    first, *others = potential.head.mlp.matrices()
    readout = [network.readout, first, *others] if config.features_silu else [network.readout @ first, *others]
    readout[-1] = readout[-1] * math.sqrt(2)  # a pair is counted from both its ends, for which the package divides
    found = {
        "two_body": list(network.two_body_mlp.weights),
        "tensor_weights": [by_channel(network.tensor_weights)],
        "projection": [scalars_first(network.projection)],
        "readout": readout,
    }
    for k, layer in enumerate(network.layers):
        *hidden, last = layer.latent_mlp.weights
        found[f"latent.{k}"] = [*hidden, scalars_first(last)]
    if config.radial == "bessel":
        found["radial"] = [network.embedding.radial]
    return found


def _arrays(potential: Potential, config: NequipAllegroConfig, mlps: dict[str, list[Tensor]]) -> dict[str, ndarray]:
    network = potential.network
    arrays = {f"{name}.{k}": _numbers(w) for name, weights in mlps.items() for k, w in enumerate(weights)}
    arrays["inverse_cutoff"] = np.array(1 / config.cutoff)
    if config.pair_cutoffs is not None:
        arrays["inverse_cutoff"] = 1 / np.array(config.pair_cutoffs)
    if config.radial == "spline":
        arrays["spline"] = _numbers(network.embedding.weight.transpose(1, 2).flatten(1))
    else:
        arrays |= {name: _numbers(getattr(network.embedding, name)) for name in ("center", "neighbor")}
        arrays["bessel"] = _numbers(network.basis.frequencies)[None] / math.pi
    for k, (layer, names) in enumerate(zip(network.layers, _layer_irreps(config), strict=True)):
        entering, leaving = (_ordered(_irreps(names[side])) for side in (0, 2))
        at = [(c, a, b) for c in leaving for a in entering for b in harmonics(config.l_max) if couples(a, b, c)]
        ours = [(c, a, b) for c, paths in layer.product.paths.items() for a, b in paths.pairs]
        arrays[f"paths.{k}"] = _numbers(layer.product.weight)[:, [ours.index(path) for path in at]]
    return arrays


def _irreps(text: str) -> list[Irrep]:
    return [(int(term[2:-1]), 1 if term[-1] == "e" else -1) for term in text.split("+")]


def _numbers(tensor: Tensor) -> ndarray:
    return tensor.detach().cpu().double().numpy().copy()


def _arguments(about: dict[str, Any], config: NequipAllegroConfig, mlps: dict[str, list[Tensor]]) -> dict[str, Any]:
    """Arguments of ``allegro.model.AllegroModel``; weights are set afterwards."""
    embedding: dict[str, Any] = {
        "_target_": "allegro.nn.TwoBodyBesselScalarEmbed",
        "num_bessels": config.n_radial,
        "bessel_trainable": config.bessel_trainable,
        "polynomial_cutoff_p": float(config.envelope_p),
    }
    if config.radial == "spline":
        spline = "allegro.nn.TwoBodySplineScalarEmbed"
        embedding = {"_target_": spline, "num_splines": config.n_radial, "spline_span": config.spline_span}
    arguments: dict[str, Any] = {
        "r_max": config.cutoff,
        "type_names": about["type_names"],
        "l_max": config.l_max,
        "parity": config.parity == "full",
        "radial_chemical_embed": embedding,
        "radial_chemical_embed_dim": config.width,
        "num_layers": config.n_layers,
        "num_scalar_features": config.n_scalars,
        "num_tensor_features": config.tensor_channels,
        "tp_path_channel_coupling": config.coupling == "channel",
    }
    for name, ours in (("scalar_embed", "two_body"), ("allegro", "latent.0"), ("readout", "readout")):
        widths = [matrix.shape[1] for matrix in mlps[ours][:-1]]
        if len(set(widths)) > 1:
            raise InputError(
                f"the hidden layers of its {ours.removesuffix('.0')} MLP have the widths {widths}; nequip-allegro "
                "knows one width for all of an MLP"
            )
        arguments[f"{name}_mlp_hidden_layers_depth"] = len(widths)
        arguments[f"{name}_mlp_hidden_layers_width"] = widths[0] if widths else None
    if config.pair_cutoffs is not None:
        names, cutoffs = about["type_names"], iter(config.pair_cutoffs)
        arguments["per_edge_type_cutoff"] = {a: {b: next(cutoffs) for b in names} for a in names}
    return arguments


def _add_repulsion(
    potential: Potential, config: NequipAllegroConfig, about: dict[str, Any], arguments: dict[str, Any]
) -> None:
    repulsion = potential.info.terms.repulsion
    if repulsion is None:
        return
    if tuple(repulsion.cutoffs) != (config.pair_cutoffs or (config.cutoff,)):
        raise InputError("its repulsion has cutoffs of its own; in nequip-allegro they are those of the model")
    p = float(repulsion.envelope_p)
    about |= {"pair_potential": "ZBL", "zbl_p": p, "zbl_prefactor": COULOMB / 2}
    arguments["pair_potential"] = {
        "_target_": "nequip.nn.pair_potential.ZBL",
        "units": "metal",
        "chemical_species": about["type_names"],
        "polynomial_cutoff_p": p,
    }
