"""Relaxed energies as a sum over the adsorbate's atoms: physics, what is computed, what is refused, end to end."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import SMALL, configuration, relaxing
from shown_as_potential import AsPotential

import equicat
from equicat import InputError, testing
from equicat.apply.clean_slab import minus_clean_slab, without_adsorbates
from equicat.data.batch import Batch
from equicat.data.datasets import open_dataset
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.data.structure import Structure
from equicat.models.direct import DirectHeads, DirectModel
from equicat.models.local_linear import DECAY, LocalLinear
from equicat.models.model import Prediction
from equicat.networks.baselines.schnet import SchNetConfig
from equicat.options.text import read_yaml
from equicat.training.config import TrainConfig, from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train

ELEMENTS = (1, 8, 29)
SCHNET = SchNetConfig(cutoff=4.0, hidden_channels=8, n_filters=8, n_interactions=2, n_gaussians=8)
PHYSICS = [
    testing.check_rotation,
    testing.check_reflection,
    testing.check_translation,
    testing.check_permutation,
    testing.check_batch_independence,
    testing.check_finite_difference_forces,
    testing.check_smooth_cutoff,
    testing.check_additivity,
    testing.check_supercell,
]


def model(config=SMALL, energy=True, displacement_head=None) -> DirectModel:
    torch.manual_seed(0)
    heads = DirectHeads("mlp" if energy else None, "adsorbate", displacement_head)
    return DirectModel(
        config,
        ELEMENTS,
        (8,),
        heads,
        scale=0.7,
        reference_energies=(-1.0, 2.0, 5.0),
    ).double()


def with_oxygen_as_adsorbate(batch: Batch) -> Batch:
    return dataclasses.replace(batch, tags=torch.where(batch.numbers == 8, 2, 1))


def slab() -> Batch:
    return Batch.from_structures([testing.example_structures(ELEMENTS)[1]], 4.0, dtype=torch.float64)


class AdsorbateAsPotential(AsPotential):
    """The energy of the oxygen atoms, with forces that are its gradient, so that the checks of potentials apply."""

    def forward(self, batch: Batch, forces: bool = True) -> Prediction:
        batch = with_oxygen_as_adsorbate(batch)
        species, center = self.direct.species(batch), batch.edge_index[0]
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_()
            edge_vec = dataclasses.replace(batch, positions=positions).edge_vec()
            features = self.direct.network(edge_vec, batch.edge_index, species)
            atoms = self.direct.energy(features, center, len(species)) * self.direct.scale * (batch.tags == 2)
            (gradient,) = torch.autograd.grad(atoms.sum(), positions)
        return Prediction(self.direct(batch).relaxed_energy, atoms.detach(), -gradient.to(batch.dtype))


@pytest.mark.parametrize("check", PHYSICS, ids=lambda check: check.__name__)
def test_physics(check):
    check(AdsorbateAsPotential(model()))


@pytest.mark.parametrize("config", [SMALL, SCHNET], ids=["allegro", "schnet"])
def test_it_is_the_sum_over_atoms_with_tag_2(config):
    if config is SCHNET:
        pytest.importorskip("torch_geometric", reason="the baselines need torch_geometric (extra: baselines)")
    direct, batch = model(config), slab()
    species = direct.species(batch)
    features = direct.network(batch.edge_vec(), batch.edge_index, species)
    atoms = direct.energy(features, batch.edge_index[0], len(species)) * direct.scale
    expected = (atoms + direct.reference_energies[species])[batch.tags == 2].sum()
    assert direct(batch).relaxed_energy.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("head", [None, "gradient", "pair", "vector"])
@pytest.mark.parametrize("energy", [True, False])
def test_a_strictly_local_network_computes_what_is_read(head, energy, monkeypatch):
    """Displacements of free atoms but for the gradient head, energies of the adsorbate; the numbers stay the same."""
    if head is None and not energy:
        return
    direct, batch, seen = model(displacement_head=head, energy=energy), slab(), []
    found, forward = direct(batch), direct.network.forward
    monkeypatch.setattr(direct.network, "forward", lambda vec, index, z: seen.append(index) or forward(vec, index, z))
    direct(batch)
    read = ((batch.tags == 2) & energy) | (~batch.fixed & (head is not None)) | (head == "gradient")
    assert seen[0][0].unique().tolist() == read.nonzero()[:, 0].tolist()
    monkeypatch.setattr(DirectModel, "_needed", lambda *_: None)
    everything = direct(batch)
    for name in ("relaxed_energy", "displacements"):
        mine, all_centres = getattr(found, name), getattr(everything, name)
        if mine is not None:
            torch.testing.assert_close(mine, all_centres, rtol=0, atol=1e-12)


def test_a_clean_slab_has_exactly_no_energy():
    direct, batch = model(), slab()
    assert direct(without_adsorbates(batch)).relaxed_energy.item() == 0
    found = direct(batch)
    assert minus_clean_slab(direct, batch, found).relaxed_energy.item() == found.relaxed_energy.item() != 0


def test_systems_without_tags_are_refused():
    bare = dataclasses.replace(slab(), tags=torch.zeros_like(slab().tags))
    with pytest.raises(InputError, match="slab: its atoms have no tags, but this model sums the energies of the adsor"):
        model()(bare)


# ---- from end to end -----------------------------------------------------------------------------------------------


def tagged(root, reference: str, tags: tuple[int, int] = (1, 2), shift: float = 0.0):
    """The relaxations of the tests with oxygen as the adsorbate, and ``shift`` (eV) more for each of its atoms."""
    for split, seeds in {"train": range(16), "val_id": range(16, 22)}.items():
        structures = [relaxing(seed) for seed in seeds]
        marked = [
            dataclasses.replace(
                s,
                tags=np.where(s.numbers == 8, tags[1], tags[0]),
                relaxed_energy=s.relaxed_energy + shift * (s.numbers == 8).sum(),
            )
            for s in structures
        ]
        write_store(root / "is2re" / split, marked, DatasetInfo(reference))
    return root


def options(data, out, **more) -> TrainConfig:
    return from_mapping(configuration(data, out, **more) | {"task": "is2re", "energy_atoms": "adsorbate"})


def test_a_run_has_references_of_the_adsorbate_and_can_be_tuned(tmp_path):
    data = tagged(tmp_path / "data", "adsorption")
    run = train(options(data, tmp_path / "run")).run
    direct, structures = equicat.load(run), [relaxing(seed) for seed in range(16)]
    counts = np.array([(s.numbers == 8).sum() for s in structures], dtype=float)
    energies = np.array([s.relaxed_energy for s in structures])
    expected = dict.fromkeys(direct.elements, 0.0) | {8: counts @ energies / (counts @ counts)}
    assert direct.reference_energies.tolist() == pytest.approx([expected[z] for z in direct.elements])
    assert direct.scale.item() == pytest.approx(np.sqrt(np.mean((energies - counts * expected[8]) ** 2)), rel=1e-6)
    assert direct.info.energy_atoms == "adsorbate"
    more = {"run": {"init_from": str(run)}, "normalization": {"references": "linear"}}
    tuned = equicat.load(train(options(data, tmp_path / "tuned", **more)).run)
    still = [e for z, e in zip(direct.elements, tuned.reference_energies.tolist(), strict=True) if z != 8]
    assert still == pytest.approx([0.0] * len(still))


def test_energies_of_another_kind_and_other_tasks_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"which is for adsorption energies, but those of .* are 'total'"):
        train(options(tagged(tmp_path / "total", "total"), tmp_path / "run"))
    with pytest.raises(InputError, match=r"energy_atoms is adsorbate, but no atom of .* has tag 2"):
        train(options(tagged(tmp_path / "untagged", "adsorption", (0, 1)), tmp_path / "run"))
    with pytest.raises(InputError, match="energy_atoms is for the tasks is2re and is2rs; leave it out for s2ef"):
        from_mapping({"task": "s2ef", "energy_atoms": "adsorbate"})


@pytest.mark.parametrize("name", ["xu_kitchin", "emt_is2re"])
def test_the_presets_train(name, tmp_path):
    values = read_yaml(find_configuration(name))
    data = str(tagged(tmp_path / "data", "adsorption"))
    run = {"out": str(tmp_path / "run"), "max_epochs": 1, "val_every": 1, "progress": False, "accelerator": "cpu"}
    values |= {"data": {"train": [data], "val": [data]}, "run": values["run"] | run}
    direct = equicat.load(train(from_mapping(values)).run)
    assert direct.info.energy_atoms == "adsorbate"
    assert ("displacements" in direct.info.outputs) == (name == "xu_kitchin")


# ---- a linear model with a share in it ------------------------------------------------------------------------------


def linear(share=0.5, coefficients=((1.0, 0.1), (-2.0, 0.3), (0.5, 0.7))) -> LocalLinear:
    found = LocalLinear(len(ELEMENTS), SMALL.cutoff, share)
    found.coefficients += torch.tensor(coefficients)
    return found


def test_energies_by_hand():
    """Every atom of the adsorbate has its own coefficient, and a mean of those of the slab atoms near it."""
    batch, part = slab(), linear()
    species = model().species(batch)
    expected = 0.0
    for atom in (batch.tags == 2).nonzero()[:, 0].tolist():
        edges = (batch.edge_index[0] == atom) & (batch.tags[batch.edge_index[1]] != 2)
        length = batch.edge_vec()[edges].norm(dim=1).numpy()
        weight = np.exp(-length / DECAY) * (1 - length / SMALL.cutoff) ** 2
        below = part.coefficients[species[batch.edge_index[1][edges]], 1].numpy()
        expected += part.coefficients[species[atom], 0].item() + (below @ weight) / (
            weight.sum() + np.exp(-SMALL.cutoff / DECAY) / 10
        )
    assert (batch.tags == 2).any()
    assert part(batch, species, batch.tags == 2).item() == pytest.approx(expected, abs=1e-6)


def test_a_prediction_is_the_mean_and_training_the_network_alone():
    direct, batch = model(), slab()
    species, network = direct.species(batch), direct.eval()(batch).relaxed_energy.item()
    direct.local_linear = linear(share=0.25).double()
    alone = direct.local_linear(batch, species, batch.tags == 2).item()
    assert direct(batch).relaxed_energy.item() == pytest.approx(0.75 * network + 0.25 * alone)
    assert direct.train()(batch).relaxed_energy.item() == pytest.approx(network)
    assert direct.eval()(without_adsorbates(batch)).relaxed_energy.item() == 0


def test_an_atom_that_leaves_the_slab_changes_it_smoothly():
    """The term of the neighbours goes to zero when the last one reaches the cutoff."""
    part, found = linear(), []
    for distance in np.linspace(2, SMALL.cutoff + 0.1, 43):
        atoms = Atoms("CuO", [(0, 0, 0), (0, 0, distance)], tags=[1, 2])
        batch = Batch.from_structures([Structure.from_ase(atoms)], SMALL.cutoff, dtype=torch.float64)
        found.append(part(batch, model().species(batch), batch.tags == 2).item())
    assert found[0] == pytest.approx(-2.0 + 0.7, abs=2e-3)
    assert found[-2:] == [-2.0, -2.0]
    assert np.abs(np.diff(found)).max() < 0.1


def test_a_run_fits_it_keeps_it_and_tunes_it(tmp_path):
    data = tagged(tmp_path / "data", "adsorption")
    config = dataclasses.replace(options(data, tmp_path / "run"), linear_share=0.5)
    direct = equicat.load(train(config).run)
    structures = list(open_dataset(data / "is2re" / "train"))
    batch = Batch.from_structures(structures, direct.cutoff, dtype=torch.float64)
    found = direct.local_linear.descriptors(batch, direct.species(batch), batch.tags == 2).flatten(1).numpy()
    energies = np.array([s.relaxed_energy for s in structures])
    expected = found @ np.linalg.solve(found.T @ found + 0.01 * np.eye(found.shape[1]), found.T @ energies)
    mine = direct.local_linear(batch, direct.species(batch), batch.tags == 2)
    assert mine.tolist() == pytest.approx(expected, abs=1e-3)
    assert direct.info.linear_share == 0.5
    both = {"run": {"init_from": str(tmp_path / "run")}}
    tuned = dataclasses.replace(options(data, tmp_path / "tuned", **both), linear_share=0.5)
    again = equicat.load(train(tuned).run)
    torch.testing.assert_close(again.local_linear.coefficients, direct.local_linear.coefficients, rtol=0, atol=0.02)
    with pytest.raises(InputError, match=r"linear_share is 0.0 in the configuration but 0.5 in the checkpoint"):
        train(options(data, tmp_path / "other", **both))


def test_references_are_fitted_to_the_network_alone(tmp_path):
    """Energies that are 3 eV higher for each atom of oxygen move its reference by 3 eV, whatever the linear share."""
    data = tagged(tmp_path / "data", "adsorption")
    run = train(dataclasses.replace(options(data, tmp_path / "run"), linear_share=0.5)).run
    more = {"run": {"init_from": str(run), "max_epochs": 1}, "normalization": {"references": "linear"}}
    found = []
    for shift in (0.0, 3.0):
        moved = tagged(tmp_path / f"moved {shift}", "adsorption", shift=shift)
        config = dataclasses.replace(options(moved, tmp_path / f"tuned {shift}", **more), linear_share=0.5)
        tuned = equicat.load(train(config).run)
        found.append(tuned.reference_energies[tuned.elements.index(8)].item())
    assert found[1] - found[0] == pytest.approx(3.0, abs=1e-4)


def test_where_it_has_no_meaning_it_is_refused():
    with pytest.raises(InputError, match="linear_share is for relaxed energies with energy_atoms adsorbate"):
        from_mapping({"task": "is2re", "linear_share": 0.5})
