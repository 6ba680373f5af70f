"""equicat: catalysis simulations with strictly local E(3)-equivariant models.

The public names, ``equicat.__all__``, are imported on first use, so that ``import equicat`` (and ``equicat --help``)
does not wait for PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Batch": "equicat.data.batch",
    "BatchCalculator": "equicat.interfaces.ase",
    "Calculator": "equicat.interfaces.ase",
    "InputError": "equicat.errors",
    "LammpsForces": "equicat.interfaces.lammps",
    "OutsideTraining": "equicat.errors",
    "Structure": "equicat.data.structure",
    "TorchSimModel": "equicat.interfaces.torchsim",
    "adsorption_energies": "equicat.adsorption.energies",
    "free_energies": "equicat.vibrations.free_energies",
    "lammps": "equicat.interfaces.lammps_script",
    "load": "equicat.models.saved",
    "neb": "equicat.barriers.neb",
    "open_dataset": "equicat.data.datasets",
    "read": "equicat.data.readers",
    "relax": "equicat.relaxation.relax",
    "torch_sim_state": "equicat.interfaces.torchsim",
    "vibrations_of": "equicat.vibrations.modes",
}

__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'equicat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
