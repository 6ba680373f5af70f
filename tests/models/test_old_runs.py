"""Runs and a data set made by commit b139b12 load, and predict what they predicted then."""

import json

import numpy as np
import pytest
import torch
from places import FIXTURES

import equicat
from equicat.data.directory import splits_of

STORED = FIXTURES / "runs_b139b12"
RUNS = sorted(path.parent.name for path in STORED.glob("*/model.json"))
EXPECTED = np.load(STORED / "expected.npz")
TOLERANCE = {"converted_nequip_allegro": 1e-9}
"""The converted model is in float64; eV, eV/Å and Å. The others are in float32."""


@pytest.mark.parametrize("run", RUNS)
def test_predictions_are_those_of_then(run):
    if run in ("schnet", "gemnet_dt"):
        pytest.importorskip("torch_geometric", reason="baselines need the extra [baselines]")
    model = equicat.load(STORED / run)
    everything = list(equicat.read(STORED / "structures.extxyz"))
    structures = [everything[i] for i in EXPECTED[f"{run}/structures"]]
    batch = equicat.Batch.from_structures(structures, model.cutoff, dtype=model.dtype)
    wanted = {key.split("/")[1]: EXPECTED[key] for key in EXPECTED.files if key.startswith(f"{run}/")}
    found = model(batch, virial=True) if "virial" in wanted else model(batch)
    for name in set(wanted) - {"structures"}:
        values = getattr(found, name).double().numpy()
        np.testing.assert_allclose(values, wanted[name], rtol=0, atol=TOLERANCE.get(run, 1e-5), err_msg=name)


@pytest.mark.parametrize(("name", "wanted"), json.loads((STORED / "expected_data.json").read_text()).items())
def test_the_stored_data_set_is_read(name, wanted):
    dataset = equicat.open_dataset(STORED / "data" / name)
    assert splits_of(STORED / "data", name.split("/")[0])[dataset.path.name] == dataset.path
    assert len(dataset) == wanted["n_structures"]
    assert dataset.elements == wanted["elements"]
    assert dataset.info.energy_reference == wanted["energy_reference"]
    assert dataset.array(wanted["energy"]).sum() == pytest.approx(wanted["sum_of_energies"], abs=1e-9)


def test_loading_changes_no_global_state():
    before = torch.get_default_dtype()
    equicat.load(STORED / "converted_nequip_allegro")
    assert torch.get_default_dtype() == before
