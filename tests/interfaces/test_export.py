"""Exports: a model and back gives the model; the program without this package, and the other package, its numbers."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import SMALL, SMALL_NEQUIP
from places import FIXTURES

from equicat.cli.main import main
from equicat.data.batch import Batch
from equicat.data.fitted import Statistics
from equicat.errors import InputError
from equicat.interfaces import compiled
from equicat.interfaces.agreement import compare
from equicat.interfaces.nequip_allegro import potential, read_arrays
from equicat.interfaces.nequip_allegro_export import describe, export
from equicat.models import saved
from equicat.models.model import ModelInfo
from equicat.models.repulsion import EnergyTerms, Repulsion
from equicat.testing.structures import example_structures

ELEMENTS = (8, 29)
PEER = os.environ.get("EQUICAT_PEER_PYTHON")
STORED = FIXTURES / "nequip_allegro"


def model_of(config, dtype: str = "float32", output_mlp: tuple[int, ...] = (7,), **more):
    torch.manual_seed(0)
    statistics = Statistics(ELEMENTS, 0.0, (-1.0, -2.0), 1.3, 10.0)
    info = ModelInfo("s2ef", config, output_mlp, dtype, "total", statistics, **more)
    return saved.build(info, scale=1.3, references=(-1.0, -2.0)).eval().requires_grad_(False)


VARIANTS = [
    {"l_max": l_max, "parity": parity, "n_layers": 3} for l_max in (1, 2, 3) for parity in ("full", "restricted")
]
OTHERS = [
    {"radial": "spline", "spline_span": 5, "pair_cutoffs": (4.0, 3.5, 3.0, 4.0)},
    {"coupling": "path", "neighbors_of_element": (5.0, 12.0), "bessel_trainable": True},
    {"features_silu": False, "embedding_width": 6},
]


@pytest.mark.parametrize("changes", [*VARIANTS, *OTHERS], ids=str)
def test_to_nequip_allegro_and_back_is_the_same_model(changes):
    """Through our reader of that package's models, which is tested against the package."""
    original = model_of(dataclasses.replace(SMALL_NEQUIP, **changes), "float64")
    about, arrays, arguments = describe(original)
    assert json.loads(json.dumps([about, arguments])) == [about, arguments]
    again = potential(about, arrays)
    batch = Batch.from_structures(example_structures(ELEMENTS), original.cutoff, dtype=torch.float64)
    ours, theirs = original(batch, virial=True), again(batch, virial=True)
    for name in ("energy", "forces", "virial"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("name", sorted(path.stem for path in STORED.glob("*.npz")))
def test_converted_models_go_back_as_they_came(name):
    about, arrays = read_arrays(STORED / f"{name}.npz")
    first = potential(about, arrays)
    second = potential(*describe(first)[:2])
    assert second.config == first.config
    for key, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, rtol=1e-12, atol=1e-15, msg=key)


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [
        (SMALL, {}, "this model is allegro; the package has another architecture"),
        (SMALL_NEQUIP, {"force_head": "magnitude-direction"}, "has direct forces"),
        (dataclasses.replace(SMALL_NEQUIP, radial="spline"), {}, "model.spline_span is 12 and model.n_radial 8"),
        (SMALL_NEQUIP, {"output_mlp": (7, 5)}, r"readout MLP have the widths \[7, 7, 5\]"),
        (
            SMALL_NEQUIP,
            {"terms": EnergyTerms(repulsion=Repulsion(cutoffs=(2.0,)))},
            "its repulsion has cutoffs of its own",
        ),
    ],
)
def test_what_the_package_cannot_express_is_refused(config, more, message):
    with pytest.raises(InputError, match=message):
        describe(model_of(config, **more))


def test_other_numbers_are_refused():
    model, structures = model_of(SMALL_NEQUIP), example_structures(ELEMENTS)
    found = model(Batch.from_structures(structures, model.cutoff))
    energy, forces = found.energy.numpy(), found.forces.double().numpy()
    compare(model, structures, energy, forces)
    with pytest.raises(InputError, match="the exported model gives other numbers"):
        compare(model, structures, energy, forces * (1 + 1e-4))
    with pytest.raises(InputError, match="the exported model gives other numbers"):
        compare(model, structures, energy * np.nan, forces)


def test_an_environment_without_the_package_is_named(tmp_path, capsys):
    saved.save(tmp_path, model_of(SMALL_NEQUIP))
    command = ["export", str(tmp_path), str(tmp_path / "m.nequip.zip"), "--format", "nequip-allegro"]
    for python, message in ((sys.executable, "could not make the package"), ("nowhere", "give a Python interpreter")):
        assert main([*command, "--peer_python", python]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "m.zip"), "--format", "nequip-allegro"]) == 2
    assert "is called ….nequip.zip" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.benchmark
@pytest.mark.skipif(PEER is None, reason="EQUICAT_PEER_PYTHON: set it to an interpreter that has nequip-allegro")
@pytest.mark.parametrize("changes", [*VARIANTS, *OTHERS], ids=str)
def test_the_package_computes_our_numbers(changes, tmp_path):
    """The export compares energies and forces of the packaged model itself, and raises if they differ."""
    export(model_of(dataclasses.replace(SMALL_NEQUIP, **changes)), tmp_path / "m.nequip.zip", PEER)
    assert (tmp_path / "m.nequip.zip").stat().st_size > 0


# ---- compiled --------------------------------------------------------------------------------------------------------

WITHOUT_EQUICAT = """
import sys, json, torch
extra = {"equicat.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
out = program(*torch.load(sys.argv[2]))
assert "equicat" not in sys.modules
torch.save([json.loads(extra["equicat.json"]), *out], sys.argv[3])
"""


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        pytest.param(dataclasses.replace(SMALL, l_max=1), "float32", marks=pytest.mark.slow, id="allegro"),
        pytest.param(SMALL_NEQUIP, "float64", marks=pytest.mark.slow, id="nequip-allegro"),
        pytest.param(dataclasses.replace(SMALL_NEQUIP, n_layers=1, l_max=1), "float64", id="one layer"),
    ],
)
def test_a_program_runs_without_this_package(config, dtype, tmp_path):
    repulsion = EnergyTerms(repulsion=Repulsion(cutoffs=(4.0,)))
    model = model_of(config, dtype, terms=repulsion)
    saved.save(tmp_path, model)
    program, given, found = (tmp_path / name for name in ("m.pt2", "given.pt", "found.pt"))
    assert main(["export", str(tmp_path), str(program), "--format", "compiled"]) == 0
    structure = example_structures(ELEMENTS, 7)[1]
    torch.save(compiled.inputs(structure, model), given)
    command = [sys.executable, "-I", "-c", WITHOUT_EQUICAT, str(program), str(given), str(found)]
    subprocess.run(command, check=True, cwd=tmp_path)
    about, energy, atom_energies, forces, virial = torch.load(found)
    assert (about["elements"], about["cutoff"], about["energy_reference"]) == (["O", "Cu"], 4.0, "total")
    expected = model(Batch.from_structures([structure], model.cutoff, dtype=model.dtype), virial=True)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(energy, expected.energy[0], **tolerance)
    torch.testing.assert_close(atom_energies.sum(), energy, **tolerance)
    torch.testing.assert_close(forces, expected.forces.double(), **tolerance)
    torch.testing.assert_close(virial + virial.t(), (expected.virial[0] + expected.virial[0].t()).double(), **tolerance)
    positions, cell, numbers, *edges = compiled.inputs(structure, model)
    numbers[0] = 26
    assert torch.export.load(program).module()(positions, cell, numbers, *edges)[0].isnan(), "Fe is not known"


def test_edges_find_their_centres_by_index_with_the_same_numbers():
    """The form of the network that is traced, beside the one that runs elsewhere."""
    for config in (SMALL, dataclasses.replace(SMALL_NEQUIP, n_layers=3), dataclasses.replace(SMALL, l_max=3)):
        model = model_of(config, "float64")
        for structure in example_structures(ELEMENTS, 3):
            energy, _, forces, _ = compiled.Program(model)(*compiled.inputs(structure, model))
            expected = model(Batch.from_structures([structure], model.cutoff, dtype=torch.float64))
            torch.testing.assert_close(energy, expected.energy[0], rtol=1e-12, atol=1e-11)
            torch.testing.assert_close(forces, expected.forces, rtol=1e-10, atol=1e-10)


def test_what_cannot_be_compiled_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a compiled model is called …\.pt2"):
        compiled.export(model_of(SMALL), tmp_path / "m.so")
    with pytest.raises(InputError, match="Allegro models of energies and their gradient can be compiled"):
        compiled.export(model_of(SMALL, force_head="magnitude-direction"), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_a_format_that_there_is_not(tmp_path, capsys):
    assert main(["export", str(tmp_path), "m.pt2", "--format", "onnx"]) == 2
    assert "onnx" in capsys.readouterr().err
