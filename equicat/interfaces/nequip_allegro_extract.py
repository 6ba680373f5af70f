"""Reads a model of the nequip-allegro package and writes its numbers as plain arrays; needs that package, not equicat.

``python nequip_allegro_extract.py MODEL OUT.npz`` takes a checkpoint (``.ckpt``) or a package (``.nequip.zip``). A
package holds its own copy of the classes, so modules are told apart by the names that the model gives them, never by
class.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(path: str) -> torch.nn.Module:
    """The model in a checkpoint or package. Both hold pickles: open only files that you trust."""
    from nequip.model.saved_models import load_saved_model
    from nequip.utils.global_state import global_state_initialized, set_global_state

    if not global_state_initialized():
        set_global_state(allow_tf32=False)
    return load_saved_model(path).eval()


def extract(model: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description of a model, and its weights in float64 with the factors that the package applies in its forward pass.

    Args:
        model: as the package's builder returns it.

    Raises:
        ValueError: for a part that an Allegro energy model does not have.
    """
    parts = dict(model.model.func.named_children())
    if "allegro" not in parts:
        raise ValueError(f"it is made of {', '.join(parts)}: not an Allegro energy model")
    arrays: dict[str, np.ndarray] = {"inverse_cutoff": _array(parts["edge_norm"]._rmax_recip)}
    about: dict[str, Any] = {
        "type_names": list(model.type_names),
        "dtype": str(model.model_dtype).removeprefix("torch."),
        "r_max": float(parts["edge_norm"].r_max),
        "activations": {},
    }
    _embedding(dict(parts["radial_chemical_embed"].named_children()), about, arrays)
    _mlp("two_body", parts["scalar_embed_mlp"].mlp_module, about, arrays)
    _mlp("tensor_weights", parts["tensor_embed"].env_embed_linear, about, arrays)
    _layers(parts["allegro"], about, arrays)
    _mlp("readout", parts["edge_readout"].mlp_module, about, arrays)
    arrays["sum_norm"] = _array(parts["edge_eng_sum"].norm_module.norm_const)
    energy = parts["per_type_energy_scale_shift"]
    arrays |= {"scales": _array(energy.scales), "shifts": _array(energy.shifts)}
    if "pair_potential" in parts:
        pair = parts["pair_potential"]
        about["pair_potential"] = type(pair).__name__
        if "_zbl" in dict(pair.named_children()):
            about["zbl_p"], about["zbl_prefactor"] = pair.cutoff.p, float(pair._qqr2exesquare)
    return about, arrays


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def _mlp(name: str, function: Any, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The matrices of an MLP as ``name.0``, ``name.1``, … and the names of its activations."""
    about["activations"][name] = []
    if "weights" in dict(function.mlp.named_children()):  # linear maps in a row, one factor for all
        matrices = [_array(weight) for weight in function.mlp.weights]
        matrices[0] = matrices[0] * float(function.mlp.alpha)
    else:
        matrices = []
        for layer in function.mlp:
            if next(layer.parameters(), None) is None:
                about["activations"][name].append(type(layer).__name__)
                continue
            if layer.bias is not None:
                raise ValueError(f"its {name} has biases")
            matrices.append(_array(layer.weight) * float(layer.alpha))
    arrays |= {f"{name}.{k}": matrix for k, matrix in enumerate(matrices)}


def _embedding(parts: dict[str, Any], about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    if "spline" in parts:
        spline = parts["spline"]
        about |= {"radial": "spline", "n_radial": spline.num_splines, "span": spline.spline_span}
        arrays["spline"] = _array(spline.class_embed.weight)
        return
    if "bessel_encode" not in parts:
        raise ValueError(
            f"its radial_chemical_embed is made of {', '.join(parts)}, neither Bessel nor spline functions"
        )
    bessel, types = parts["bessel_encode"], parts["type_embed"]
    about |= {"radial": "bessel", "n_radial": bessel.num_bessels, "bessel_trainable": bool(bessel.trainable)}
    about["envelope_p"] = bessel.cutoff.p
    arrays |= {"bessel": _array(bessel.bessel_weights)}
    arrays |= {"center": _array(types.center_embed.weight), "neighbor": _array(types.neighbor_embed.weight)}
    _mlp("radial", types.basis_linear, about, arrays)


def _layers(allegro: Any, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    about["n_scalars"], about["channels"] = allegro.num_scalar_features, allegro.num_tensor_features
    about["weights_by_irrep"] = bool(allegro._env_weighter.weight_individual_irreps)
    _mlp("projection", allegro.first_layer_env_embed_projection, about, arrays)
    arrays["env_norm"] = _array(allegro.avg_num_neighbors_norm.norm_const)
    about["irreps"] = []
    for k, (latent, product) in enumerate(zip(allegro.latents, allegro.tps, strict=True)):
        _mlp(f"latent.{k}", latent, about, arrays)
        about["coupling"] = bool(product.path_channel_coupling)
        about["irreps"].append([str(product.irreps_in1), str(product.irreps_in2), str(product.irreps_out)])
        arrays[f"paths.{k}"] = _array(product.weights)


def write(path: Path, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """One ``.npz`` file; ``about`` is JSON in it."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays, about=np.array(json.dumps(about)))  # type: ignore[arg-type]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a nequip-allegro model as plain arrays.")
    parser.add_argument("model", help="checkpoint or package (.nequip.zip); both hold pickles")
    parser.add_argument("out", type=Path, help=".npz file")
    options = parser.parse_args()
    write(options.out, *extract(load(options.model)))
