"""Models for metatomic: its own calculator gives the numbers of the model, for atoms and parts of systems too."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111
from conftest import SMALL, SMALL_NEQUIP
from places import ROOT

import equicat
from equicat.data.fitted import Statistics
from equicat.errors import InputError
from equicat.interfaces.metatomic_export import export
from equicat.models import saved
from equicat.models.model import ModelInfo
from equicat.models.repulsion import EnergyTerms, Repulsion

INSTALLED = importlib.util.find_spec("metatomic") is not None and importlib.util.find_spec("metatomic_ase") is not None
needs_metatomic = pytest.mark.skipif(not INSTALLED, reason="metatomic-torch and metatomic-ase are not installed")


def save(folder, config, dtype):
    torch.manual_seed(0)
    info = ModelInfo(
        "s2ef",
        config,
        (7,),
        dtype,
        "total",
        Statistics((8, 29), 0.0, (-1.0, -2.0), 1.3, 10.0),
        terms=EnergyTerms(repulsion=Repulsion(cutoffs=(4.0,))),
    )
    model = saved.build(info, scale=1.3, references=(-1.0, -2.0)).eval().requires_grad_(False)
    saved.save(folder, model)
    return model


def systems():
    slab, solid = fcc111("Cu", (2, 2, 3), vacuum=6.0), bulk("Cu", cubic=True)
    for atoms in (slab, solid):
        atoms.symbols[1] = "O"
        atoms.rattle(0.1, seed=1)
    alone = slab[:1]
    alone.pbc = False
    return [slab, solid, alone]


@needs_metatomic
@pytest.mark.parametrize(
    ("config", "dtype"), [(SMALL, "float32"), (SMALL_NEQUIP, "float64")], ids=["published", "nequip"]
)
@pytest.mark.filterwarnings("ignore")
def test_its_calculator_gives_the_numbers_of_the_model(config, dtype, tmp_path):
    """The export is a process of its own, because TorchScript cannot read functions that jaxtyping watches."""
    save(tmp_path, config, dtype)
    command = [
        sys.executable,
        "-m",
        "equicat",
        "export",
        str(tmp_path),
        str(tmp_path / "m.pt"),
        "--format",
        "metatomic",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from metatomic_ase import MetatomicCalculator

    theirs = MetatomicCalculator(tmp_path / "m.pt", check_consistency=True)
    tolerance = 1e-5 if dtype == "float32" else 1e-9
    for atoms in systems():
        expected, found = atoms.copy(), atoms.copy()
        expected.calc, found.calc = equicat.Calculator(tmp_path), theirs
        np.testing.assert_allclose(found.get_potential_energy(), expected.get_potential_energy(), rtol=tolerance)
        np.testing.assert_allclose(found.get_potential_energies(), expected.get_potential_energies(), rtol=tolerance)
        np.testing.assert_allclose(found.get_forces(), expected.get_forces(), atol=tolerance)
        if atoms.pbc.all():
            np.testing.assert_allclose(found.get_stress(), expected.get_stress(), atol=tolerance)


@pytest.mark.skipif(importlib.util.find_spec("metatomic") is not None, reason="metatomic is installed here")
def test_without_metatomic_the_extra_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metatomic is not installed; run `pip install 'equicat\[metatomic\]'`"):
        export(save(tmp_path, SMALL, "float32"), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"a model of metatomic is called …\.pt; give such a name"):
        export(save(tmp_path, SMALL, "float32"), tmp_path / "m.pt2")
    assert not list(tmp_path.glob("m.*"))
