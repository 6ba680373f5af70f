"""Builds a model of the nequip-allegro package from plain arrays and packages it; needs that package, not equicat.

``python nequip_allegro_build.py MODEL.npz OUT.nequip.zip CHECKS.npz`` reads what
:mod:`equicat.interfaces.nequip_allegro_export` wrote. It writes a checkpoint of that package, has ``nequip-package``
make the package of it, and adds energies and forces of the structures in MODEL.npz, computed with the packaged model,
to CHECKS.npz.
"""

import argparse
import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

READER = runpy.run_path(str(Path(__file__).with_name("nequip_allegro_extract.py")))


def set_weights(model: Any, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Give a model these weights, which stand as :func:`nequip_allegro_extract.extract` would give them.

    Raises:
        ValueError: if the model, read again, is not what was given.
    """
    parts = dict(model.model.func.named_children())
    embedding = dict(parts["radial_chemical_embed"].named_children())
    if about["radial"] == "spline":
        _copy(embedding["spline"].class_embed.weight, arrays["spline"])
    else:
        bessel, types = embedding["bessel_encode"], embedding["type_embed"]
        _copy(bessel.bessel_weights, arrays["bessel"])
        _copy(types.center_embed.weight, arrays["center"])
        _copy(types.neighbor_embed.weight, arrays["neighbor"])
        _set_mlp("radial", types.basis_linear, arrays)
    _set_mlp("two_body", parts["scalar_embed_mlp"].mlp_module, arrays)
    _set_mlp("tensor_weights", parts["tensor_embed"].env_embed_linear, arrays)
    allegro = parts["allegro"]
    _set_mlp("projection", allegro.first_layer_env_embed_projection, arrays)
    for k, (latent, product) in enumerate(zip(allegro.latents, allegro.tps, strict=True)):
        _set_mlp(f"latent.{k}", latent, arrays)
        _copy(product.weights, arrays[f"paths.{k}"])
    _set_mlp("readout", parts["edge_readout"].mlp_module, arrays)
    _compare(model, about, arrays)


def _copy(weight: torch.Tensor, array: np.ndarray) -> None:
    with torch.no_grad():
        weight.copy_(torch.from_numpy(array).reshape(weight.shape))


def _set_mlp(name: str, function: Any, arrays: dict[str, np.ndarray]) -> None:
    """Undo the factors by which the package multiplies weights in its forward pass."""
    if "weights" in dict(function.mlp.named_children()):
        weights = list(function.mlp.weights)
        factors = [float(function.mlp.alpha)] + [1.0] * (len(weights) - 1)
    else:
        layers = [layer for layer in function.mlp if next(layer.parameters(), None) is not None]
        weights, factors = [layer.weight for layer in layers], [float(layer.alpha) for layer in layers]
    for k, (weight, factor) in enumerate(zip(weights, factors, strict=True)):
        _copy(weight, arrays[f"{name}.{k}"] / factor)


def _compare(model: Any, about: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Make sure that the model reads back as what was written."""
    described, found = READER["extract"](model)
    wrong = [f"{key} is {described[key]}, not {about[key]}" for key in described if described[key] != about[key]]
    tolerance = 1e-6 if about["dtype"] == "float32" else 1e-12
    for name, array in found.items():
        given, size = np.broadcast_to(arrays[name].reshape(-1), array.size), np.abs(array).max(initial=1e-30)
        if np.abs(array.ravel() - given).max(initial=0) > tolerance * size:
            wrong.append(f"{name} differs")
    if wrong:
        raise ValueError(f"the built model is another one: {'; '.join(wrong)}")


def frames(arrays: dict[str, np.ndarray]) -> list[Any]:
    """The structures in a file, as ASE has them."""
    from ase import Atoms

    found = []
    for k, numbers in enumerate(np.split(arrays["numbers"], np.cumsum(arrays["n_atoms"])[:-1])):
        start = int(arrays["n_atoms"][:k].sum())
        positions = arrays["positions"][start : start + len(numbers)]
        found.append(Atoms(numbers, positions, cell=arrays["cell"][k], pbc=arrays["pbc"][k]))
    return found


def save_checkpoint(path: Path, arguments: dict[str, Any], model: Any, data: Path) -> None:
    """A checkpoint as the package's training would leave it, with the structures of a file as its data."""
    import lightning
    from nequip.train import NequIPLightningModule
    from nequip.utils.versions import get_current_code_versions

    built = {"_target_": "allegro.model.AllegroModel", **arguments}
    transforms = [
        {
            "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
            "model_type_names": arguments["type_names"],
        },
        {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": arguments["r_max"]},
    ]
    info = {
        "versions": get_current_code_versions(verbose=False),
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": 0,
            "train_file_path": str(data),
            "val_file_path": str(data),
            "transforms": transforms,
        },
        "trainer": {},
        "global_options": {"allow_tf32": False},
        "runs": [],
        "training_module": {"_target_": "nequip.train.NequIPLightningModule", "model": built},
    }
    module = NequIPLightningModule(model=built, num_datasets={"train": 1, "val": 1, "test": 0}, info_dict=info)
    module.model["sole_model"].load_state_dict(model.state_dict())
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


def results(model: Any, atoms: Any, about: dict[str, Any]) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (eV/Å)."""
    from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper

    data = ChemicalSpeciesToAtomTypeMapper(about["type_names"])(from_ase(atoms))
    out = model(compute_neighborlist_(data, r_max=about["r_max"]))
    forces = out[AtomicDataDict.FORCE_KEY].detach().double().numpy()
    return float(out[AtomicDataDict.TOTAL_ENERGY_KEY]), forces


def main(source: Path, out: Path, checks: Path) -> None:
    """Build, package, and compute with what was packaged."""
    from allegro.model import AllegroModel
    from ase.io import write
    from nequip.scripts import package
    from nequip.utils.global_state import set_global_state

    with np.load(source) as file:
        arrays = dict(file)
    about, arguments = (json.loads(str(arrays.pop(name))) for name in ("about", "arguments"))
    arguments |= {"seed": 0, "model_dtype": about["dtype"]}
    set_global_state(allow_tf32=False)
    model = AllegroModel(**arguments)
    set_weights(model, about, arrays)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, data = Path(folder) / "model.ckpt", Path(folder) / "data.extxyz"
        # The package compiles with an example: it must have a volume, for the stress, and more than a few atoms.
        write(data, [atoms * (2, 2, 1) for atoms in frames(arrays) if atoms.pbc.all()], write_results=False)
        save_checkpoint(checkpoint, arguments, model, data)
        package.main(["build", str(checkpoint), str(out)])
    packaged = READER["load"](str(out))
    found = [results(packaged, atoms, about) for atoms in frames(arrays)]
    np.savez(checks, energy=np.array([e for e, _ in found]), forces=np.concatenate([f for _, f in found]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a package of nequip-allegro from plain arrays.")
    for name in ("source", "out", "checks"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    main(options.source, options.out, options.checks)
