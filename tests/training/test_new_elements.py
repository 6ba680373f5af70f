"""A run that learns further elements: nothing known is lost, and references, rates and frozen parts are as asked."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
import yaml
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.data import atomic_numbers
from conftest import SMALL, SMALL_NEQUIP, configuration, labelled
from safetensors.torch import load_file

import equicat
from equicat import InputError, Structure
from equicat.data.batch import Batch
from equicat.data.fitted import Statistics
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.models import saved
from equicat.models.gradient import DEFAULTS
from equicat.models.model import ModelInfo
from equicat.networks.allegro import AllegroConfig
from equicat.networks.baselines.cgcnn import CGCNNConfig
from equicat.networks.baselines.schnet import SchNetConfig
from equicat.run_directory import read_checkpoint
from equicat.training.config import from_mapping
from equicat.training.new_elements import group_and_period, most_similar, with_new_elements
from equicat.training.train import train


def with_gold(seed: int) -> Structure:
    """The system of ``labelled`` with some copper replaced by gold, whose atoms have another energy."""
    structure = labelled(seed)
    numbers = structure.numbers.copy()
    numbers[np.flatnonzero(numbers == 29)[::2]] = 79
    return dataclasses.replace(structure, numbers=numbers, energy=structure.energy + 7.0 * float((numbers == 79).sum()))


@pytest.fixture(scope="module")
def gold(tmp_path_factory):
    root = tmp_path_factory.mktemp("gold")
    for split, seeds in {"train": range(16), "val_id": range(16, 22)}.items():
        write_store(root / "s2ef" / split, [with_gold(seed) for seed in seeds], DatasetInfo("adsorption"))
    return root


@pytest.mark.parametrize(
    ("symbol", "place"),
    [("H", (1, 1)), ("He", (18, 1)), ("B", (13, 2)), ("O", (16, 2)), ("Sc", (3, 4)), ("Cu", (11, 4)), ("Pt", (10, 6)),
     ("La", (3, 6)), ("Gd", (3, 6)), ("Pb", (14, 6)), ("Og", (18, 7))],
)  # fmt: skip
def test_places_in_the_periodic_table(symbol, place):
    assert group_and_period(atomic_numbers[symbol]) == place


def test_similar_elements_are_neighbours_in_the_table():
    known = [atomic_numbers[symbol] for symbol in ("H", "C", "O", "Ni", "Cu", "Pd", "Al")]
    wanted = {"Pt": "Pd", "Au": "Cu", "Ag": "Cu", "N": "C", "S": "O", "Ga": "Al", "Co": "Ni"}
    found = {symbol: most_similar(atomic_numbers[symbol], known) for symbol in wanted}
    assert found == {symbol: atomic_numbers[other] for symbol, other in wanted.items()}


SPLINES = dataclasses.replace(
    SMALL_NEQUIP, radial="spline", pair_cutoffs=(4.0, 3.5, 3.5, 3.0), neighbors_of_element=(8.0, 12.0)
)


@pytest.mark.parametrize(
    "network", [SMALL, SPLINES, SchNetConfig(cutoff=4.0), CGCNNConfig(cutoff=4.0)], ids=lambda config: config.name
)
def test_known_elements_are_predicted_as_before(network):
    info = ModelInfo("s2ef", network, (8,), "float64", "total", Statistics((8, 29), 0.0, (-1.0, -2.0), 1.0, 10.0))
    torch.manual_seed(0)
    model = saved.build(info, 2.0, references=(-3.0, -4.0)).eval()
    larger, said = with_new_elements(model, [79, 6], DEFAULTS)
    assert larger.elements == (6, 8, 29, 79)
    assert larger.reference_energies.tolist() == [0.0, -3.0, -4.0, 0.0]
    assert said == "new elements begin as the most similar known ones: Au as Cu, C as O"
    batch = Batch.from_structures([labelled(0)], 4.0, dtype=torch.float64)
    before, after = model(batch), larger.eval()(batch)
    assert torch.equal(before.energy, after.energy)
    torch.testing.assert_close(before.forces, after.forces, rtol=0, atol=1e-12)
    if network.name != "cgcnn":  # which knows properties of all elements
        swapped = dataclasses.replace(labelled(0), numbers=np.where(labelled(0).numbers == 29, 79, 6))
        forces = larger(Batch.from_structures([swapped], 4.0, dtype=torch.float64)).forces
        torch.testing.assert_close(forces, before.forces, rtol=0, atol=1e-12)


def tuned(run, data, out, **parts):
    start = {"init_from": str(run), "max_epochs": 1} | parts.pop("run", {})
    optimizer = {"lr": 1e-30, "ema_decay": None} | parts.pop("optimizer", {})
    return train(from_mapping(configuration(data, out, run=start, optimizer=optimizer, **parts))).run


def test_references_of_new_elements_are_fitted_and_those_of_known_ones_stay(run, gold, tmp_path, capsys):
    out = tuned(run, gold, tmp_path / "out")
    before, after = equicat.load(run), equicat.load(out)
    assert after.elements == (8, 29, 79)
    assert after.reference_energies[:2].tolist() == before.reference_energies.tolist()
    shift = after.reference_energies[2] - before.reference_energies[1]
    assert shift.item() == pytest.approx(7.0, abs=0.5)
    said = capsys.readouterr().err
    assert "new elements begin as the most similar known ones: Au as Cu" in said
    references = yaml.safe_load((out / "config.yaml").read_text())["normalization"]["references"]
    assert list(references) == ["O", "Cu", "Au"]
    linear = equicat.load(tuned(run, gold, tmp_path / "linear", normalization={"references": "linear"}))
    assert linear.reference_energies[:2].tolist() != before.reference_energies.tolist()


def test_a_run_with_new_elements_is_resumed(run, gold, tmp_path):
    out = tuned(run, gold, tmp_path / "out")
    values = configuration(gold, out, run={"max_epochs": 2, "resume": True})
    assert equicat.load(train(from_mapping(values)).run).elements == (8, 29, 79)


# ---- rates of parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_frozen_parts_stay_and_slow_ones_are_slow(run, data, tmp_path, name):
    rates = {"network": 0.0, "network.two_body": 0.1}
    options = {"name": name, "lr": 0.01, "schedule": "constant", "ema_decay": None, "rates": rates}
    out = tuned(run, data, tmp_path / "out", optimizer=options)
    before, after = (load_file(r / "model.safetensors") for r in (run, out))
    trained = {key for key in before if not torch.equal(before[key], after[key])}
    assert trained == {key for key in before if key.startswith(("head.", "network.two_body"))}
    groups = read_checkpoint(out / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    adam = {group["rate"]: group["lr"] for group in groups if not group.get("muon")}
    assert adam[0.1] == pytest.approx(0.001)
    assert adam.get(1.0, 0.01) == pytest.approx(0.01)


def test_rates_of_the_published_parametrisation_are_multiplied(data, tmp_path):
    options = {"parametrization": "published", "schedule": "constant", "rates": {"head": 0.5}}
    out = train(from_mapping(configuration(data, tmp_path / "run", optimizer=options, run={"max_epochs": 1}))).run
    groups = read_checkpoint(out / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert {group["rate"] for group in groups} == {0.5, 1.0}
    assert all(group["lr"] == pytest.approx(0.01 * group["scale"] * group["rate"]) for group in groups)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"netwrk": 0.1}, r"optimizer.rates: the model has no part 'netwrk' \(did you mean 'network'"),
        ({"network": 0, "head": 0}, "optimizer.rates are all 0"),
        ({"network": -1}, "optimizer.rates is"),
    ],
)
def test_rates_without_an_effect_are_refused(data, tmp_path, rates, message):
    with pytest.raises(InputError, match=message):
        train(from_mapping(configuration(data, tmp_path / "run", optimizer={"rates": rates})))
    assert not (tmp_path / "run").exists()


# ---- what it is good for ---------------------------------------------------------------------------------------------


def emt_crystal(symbols: tuple[str, str], seed: int) -> Structure:
    """Four atoms of an alloy, rattled, with ASE's EMT as the reference."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True)
    atoms.symbols = rng.choice(symbols, size=4)
    atoms.set_cell(atoms.cell * rng.uniform(1.0, 1.08), scale_atoms=True)
    atoms.rattle(0.12, seed=seed)
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    return Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, energy=energy, forces=forces)


@pytest.mark.slow
def test_a_model_of_other_metals_is_a_better_start_than_none(tmp_path):
    """Trained on Ni and Cu, then given a few structures with Pt and Au."""
    model = dataclasses.asdict(AllegroConfig(cutoff=4.0, n_layers=1, l_max=1, tensor_channels=8))
    options = {"batch_size": 4, "max_epochs": 20}

    def go(name, structures, **run):
        data = tmp_path / f"{name}_data"
        write_store(data / "s2ef" / "train", structures[:-16], DatasetInfo("total"))
        write_store(data / "s2ef" / "val_id", structures[-16:], DatasetInfo("total"))
        values = configuration(data, tmp_path / name, model=model, run=options | run)
        out = train(from_mapping(values)).run
        with (out / "metrics.csv").open() as file:
            return min(float(row["val_forces_mae"]) for row in csv.DictReader(file))

    known = [emt_crystal(("Ni", "Cu"), seed) for seed in range(96)]
    new = [emt_crystal(("Pt", "Au"), seed) for seed in range(32)]
    go("known", known)
    scratch, tuned = go("scratch", new), go("tuned", new, init_from=str(tmp_path / "known"))
    print(f"force MAE on Pt and Au: {scratch:.3f} eV/Å from scratch, {tuned:.3f} eV/Å from Ni and Cu")
    assert tuned < 0.95 * scratch
