"""Relaxed energies as a sum over the adsorbate's atoms: physics, what is computed, what is refused, end to end."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import SMALL, configuration, relaxing
from shown_as_potential import AsPotential

import equicat
from equicat import InputError, testing
from equicat.apply.clean_slab import minus_clean_slab, without_adsorbates
from equicat.data.batch import Batch
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.models.direct import DirectHeads, DirectModel
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


def tagged(root, reference: str, tags: tuple[int, int] = (1, 2)):
    """The relaxations of the tests with oxygen as the adsorbate."""
    for split, seeds in {"train": range(16), "val_id": range(16, 22)}.items():
        structures = [relaxing(seed) for seed in seeds]
        marked = [dataclasses.replace(s, tags=np.where(s.numbers == 8, tags[1], tags[0])) for s in structures]
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
