"""Tests of what every model has: reference energies that keep their digits."""

import copy
import shutil

import pytest
import torch
from conftest import SMALL, labelled
from safetensors.torch import load_file, save_file

from equicat.data.batch import Batch
from equicat.models import saved
from equicat.models.direct import DirectModel
from equicat.models.potential import Potential
from equicat.models.repulsion import EnergyTerms

ALL_ELECTRON = (-2043.1234567, -535650.1134629042)
"""eV: float32 has digits of 0.06 eV there."""
CASTS = {
    "to": lambda model: model.to(torch.float32),
    "half and back": lambda model: model.half().float(),
    "bfloat16 and back": lambda model: model.bfloat16().to(torch.float32),
    "copied": lambda model: copy.deepcopy(model.float()).float(),
    "to a device and a dtype": lambda model: model.to("cpu", torch.float32),
    "through a state dict": lambda model: loaded(model.float().state_dict(), type(model)),
}


def made(kind: type, references=ALL_ELECTRON):
    return kind(SMALL, (8, 29), (8,), scale=0.3, reference_energies=references).double()


def loaded(state, kind):
    model = made(kind, None).float()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
@pytest.mark.parametrize("kind", [Potential, DirectModel])
def test_reference_energies_stay_float64(kind, cast):
    exact = made(kind).eval()
    model = cast(copy.deepcopy(exact)).eval()
    assert model.dtype == torch.float32
    assert model.reference_energies.tolist() == list(ALL_ELECTRON)
    assert model.state_dict()["reference_energies"].tolist() == list(ALL_ELECTRON)
    batches = [Batch.from_structures([labelled(0)], SMALL.cutoff, dtype=m.dtype) for m in (exact, model)]
    label = "energy" if kind is Potential else "relaxed_energy"
    before, after = (getattr(m(b), label) for m, b in zip((exact, model), batches, strict=True))
    assert before.dtype == after.dtype == torch.float64
    assert after.item() == pytest.approx(before.item(), abs=1e-2)


def test_factors_of_elements_keep_their_digits():
    factors = (0.1, 1 / 3)
    model = Potential(SMALL, (8, 29), (8,), scale=1.0, terms=EnergyTerms(factors)).half().double()
    assert model.factor(torch.tensor([0, 1])).tolist() == list(factors)


def test_scales_are_not_rounded_on_the_way_to_float64():
    model = DirectModel(SMALL, (8,), (8,), scale=0.1, displacement_scale=0.3).double()
    assert (model.scale.item(), model.displacement_scale.item()) == (0.1, 0.3)


def test_reference_energies_of_earlier_versions_are_loaded_as_they_are(run, tmp_path):
    """Earlier versions rounded reference energies to the model's dtype and trained the network beside those."""
    state = load_file(run / "model.safetensors")
    assert state["reference_energies"].dtype == torch.float64
    state["reference_energies"] = torch.tensor([0.1, -535650.1134629042])
    shutil.copytree(run, tmp_path / "run")
    save_file(state, tmp_path / "run" / "model.safetensors")
    model = saved.load(tmp_path / "run")
    assert model.reference_energies.tolist() == torch.tensor([0.1, -535650.1134629042]).tolist()
    saved.save(tmp_path / "run", model)
    assert torch.equal(saved.load(tmp_path / "run").reference_energies, model.reference_energies)
