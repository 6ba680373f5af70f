"""Structures unlike the training data are said to be so: once, plainly, and only where it can be told."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from ase.build import add_adsorbate, fcc111, molecule
from conftest import labelled

import equicat
from equicat import InputError, OutsideTraining, Structure
from equicat.apply.predict import predict
from equicat.data.batch import Batch
from equicat.data.fitted import Domain
from equicat.data.readers import write
from equicat.models.domain import DomainWatch

DOMAIN = Domain(
    n_structures=100,
    n_sampled=100,
    largest=20,
    shortest={"O-Cu": 1.62, "C-O": 1.1, "C-Cu": 1.8, "Cu-Cu": 2.4, "O-Pd": 1.9, "Cu-Pd": 2.5, "H-O": 0.95, "H-Cu": 1.5},
    systems={"O": {"Cu": 5, "Cu3Pd": 2}, "CO": {"Cu": 3}, "OH": {"Cu": 1}},
    adsorbates={"O": 7, "CO": 3, "OH": 1},
    catalysts={"Cu": 9, "Cu3Pd": 2},
    adsorbate_elements=(1, 6, 8),
    slab_elements=(29, 46),
)


def slab(adsorbate: str = "O", height: float = 1.9, metals: str = "Cu", size: int = 2, tags: str = "oc20") -> Structure:
    """An fcc(111) slab with an adsorbate on top; its last metal atom may be another one."""
    atoms = fcc111("Cu", (size, size, 2), a=3.7, vacuum=8.0)
    if metals != "Cu":
        atoms.numbers[: len(atoms) // 4] = 46
    n = len(atoms)
    if adsorbate:
        add_adsorbate(
            atoms,
            adsorbate if len(adsorbate) == 1 else molecule("OH" if adsorbate == "OH" else adsorbate),
            height,
            "ontop",
        )
    if tags == "oc20":
        atoms.set_tags([1] * n + [2] * (len(atoms) - n))
    elif tags == "none":
        atoms.set_tags([0] * len(atoms))
    return Structure.from_ase(atoms)


def found(structure: Structure, domain: Domain | None = DOMAIN, energy_reference: str = "adsorption") -> list[str]:
    watch = DomainWatch(domain, energy_reference)
    watch.look(Batch.from_structures([structure], 3.0))
    return [finding.text for finding in watch.findings.values()]


def test_what_was_trained_on_is_inside():
    assert found(slab()) == []
    assert found(slab(height=1.55)) == [], "a little shorter than the shortest"


@pytest.mark.parametrize("tags", ["oc20", "none", "ase"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"adsorbate": "N"}, "N–Cu were never neighbours in training"),
        ({"height": 0.31}, "O–Cu at 0.31 Å, shortest in training 1.62 Å"),
        ({"adsorbate": ""}, "a slab without adsorbate, and none was in training"),
        ({"adsorbate": "CO", "metals": "Cu3Pd"}, "CO on Cu3Pd was not in training"),
        ({"adsorbate": "H"}, "the adsorbate H was not in training"),
    ],
)
def test_what_was_not_trained_on_is_outside(options, text, tags):
    """A file without tags, or with ASE's numbers of layers, makes no difference: elements tell the adsorbate."""
    assert text in found(slab(**options, tags=tags))


def test_a_molecule_and_another_catalyst_are_outside():
    assert found(Structure.from_ase(molecule("CO", vacuum=5.0))) == [
        "a molecule without a slab, and none was in training"
    ]
    pure = slab()
    palladium = dataclasses.replace(pure, numbers=np.where(pure.numbers == 29, 46, pure.numbers))
    assert "the catalyst Pd was not in training" in found(palladium)
    assert "Pd–Pd were never neighbours in training" in found(palladium)


def test_clean_slabs_and_molecules_that_were_trained_on_are_inside():
    systems = DOMAIN.systems | {"": {"Cu": 2}, "CO": {"Cu": 3, "": 1}}
    domain = dataclasses.replace(
        DOMAIN, systems=systems, adsorbates=DOMAIN.adsorbates | {"": 2}, catalysts=DOMAIN.catalysts | {"": 1}
    )
    assert found(slab(""), domain) == []
    assert found(Structure.from_ase(molecule("CO", vacuum=5.0)), domain) == []
    assert "Cu3Pd without adsorbate was not in training" in found(slab("", metals="Cu3Pd"), domain)


def test_an_adsorbate_that_cannot_be_told_is_not_guessed():
    """Oxygen of an oxide and oxygen on it look alike without tags."""
    domain = dataclasses.replace(DOMAIN, slab_elements=(8, 29, 46))
    assert found(slab("", tags="none"), domain) == ["a slab without adsorbate, and none was in training"]
    assert found(slab("O", tags="none"), domain) == []
    assert "CO on Cu3Pd was not in training" in found(slab("CO", metals="Cu3Pd"), domain), "tags tell"


def test_large_slabs_matter_for_adsorption_energies_only():
    (text,) = found(slab(size=4))
    assert text.startswith("33 atoms, the largest structure in training had 20")
    assert found(slab(size=4), DOMAIN, "total") == []


def test_data_without_tags_and_old_runs_have_less_or_nothing_to_say():
    untagged = dataclasses.replace(DOMAIN, systems={}, adsorbates={}, catalysts={}, adsorbate_elements=())
    assert found(slab(""), untagged) == []
    assert found(slab(height=0.31), untagged) == ["O–Cu at 0.31 Å, shortest in training 1.62 Å"]
    assert found(slab("N", height=0.31), None) == []


def test_each_kind_is_said_once_with_the_first_structure():
    watch = DomainWatch(DOMAIN, "adsorption")
    structures = [dataclasses.replace(slab("N"), sid=f"s{k}") for k in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch.look(Batch.from_structures(structures, 3.0))
        watch.look(Batch.from_structures([slab(height=0.31)], 3.0))
        watch.say()
        watch.look(Batch.from_structures(structures, 3.0))
        watch.say()
    (warning,) = caught
    assert warning.category is OutsideTraining
    text = str(warning.message)
    assert "N–Cu were never neighbours in training (s0 and 2 more)" in text
    assert "O–Cu at 0.31 Å, shortest in training 1.62 Å (structure 3)" in text


@pytest.mark.parametrize(
    ("sid", "source", "numbered", "name"),
    [
        ("s4", "", True, "s4"),
        ("s4", "slabs.extxyz, frame 2", True, "s4 in slabs.extxyz, frame 2"),
        ("Cu/O_1", "Cu/O_1/OUTCAR", True, "Cu/O_1/OUTCAR"),
        ("", "slabs.extxyz, frame 2", True, "slabs.extxyz, frame 2"),
        ("", "", True, "structure 1"),
        ("", "", False, ""),
        ("s4", "slabs.extxyz, frame 2", False, "s4"),
    ],
)
def test_a_finding_names_file_and_id(sid, source, numbered, name):
    watch = DomainWatch(DOMAIN, "adsorption", numbered=numbered)
    watch.look(Batch.from_structures([slab()], 3.0))
    watch.look(Batch.from_structures([dataclasses.replace(slab("N"), sid=sid, source=source)], 3.0))
    assert watch.findings["pair N-Cu"].first == name


def test_many_findings_are_summed_up():
    watch = DomainWatch(DOMAIN, "adsorption")
    for z in range(40, 50):
        if z != 46:
            s = slab()
            watch.look(Batch.from_structures([dataclasses.replace(s, numbers=np.where(s.numbers == 8, z, 29))], 3.0))
    with pytest.warns(OutsideTraining, match=r"; and \d+ more findings$"):
        watch.say()


def test_it_can_be_an_error_or_nothing():
    batch = Batch.from_structures([dataclasses.replace(slab("N"), sid="s7")], 3.0)
    with pytest.raises(
        InputError, match=r"s7: outside of the training data: .*; leave it out, or let this be a warning"
    ):
        DomainWatch(DOMAIN, "adsorption", "error").look(batch)
    watch = DomainWatch(DOMAIN, "adsorption", "ignore")
    watch.look(batch)
    assert watch.texts() == []


# ---- where models are used -------------------------------------------------------------------------------------------


def squeezed(seed: int) -> Structure:
    """A structure of the data set with its adsorbate pushed into the slab."""
    s = labelled(seed)
    positions = s.positions.copy()
    positions[-1] = positions[0] + [0.0, 0.0, 0.4]
    return dataclasses.replace(s, positions=positions)


def test_the_calculator_warns_once(run):
    atoms = squeezed(0).to_ase()
    atoms.calc = equicat.Calculator(run)
    with pytest.warns(OutsideTraining, match="Å, shortest in training"):
        atoms.get_potential_energy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideTraining)
        atoms.rattle(1e-3)
        atoms.get_potential_energy()
        known = labelled(0).to_ase()
        known.calc = equicat.Calculator(run)
        known.get_potential_energy()
    atoms.calc = equicat.Calculator(run, outside_training="error")
    with pytest.raises(InputError, match="shortest in training"):
        atoms.get_potential_energy()


def test_prediction_warns_for_a_whole_file_in_one_line(run, tmp_path):
    write(tmp_path / "in.extxyz", [squeezed(0), squeezed(1), labelled(2)])
    options = {"progress": False, "batch_size": 1}
    with pytest.warns(OutsideTraining) as caught:
        predict(run, tmp_path / "in.extxyz", out=tmp_path / "out.extxyz", **options)
    assert len(caught) == 1
    strict = options | {"outside_training": "error"}
    with pytest.raises(InputError, match="outside of the training data"):
        predict(run, tmp_path / "in.extxyz", out=tmp_path / "strict.extxyz", **strict)
    assert not (tmp_path / "strict.extxyz").exists()


def test_the_domain_is_kept_with_the_model(run):
    domain = equicat.load(run).info.domain
    assert domain is not None
    assert domain.n_structures == 16
    assert domain.shortest["O-Cu"] > 0.5
    assert torch.get_default_dtype() == torch.float32
