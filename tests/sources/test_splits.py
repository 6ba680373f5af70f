"""Splits: what is held out is unseen, every system is in one split, the same seed gives the same splits."""

from collections import Counter
from dataclasses import replace

import pytest
from ase.data import atomic_numbers
from conftest import labelled

from equicat.data.directory import SPLITS, UNSEEN, splits_of, write_split
from equicat.data.info import DatasetInfo
from equicat.data.store import Store
from equicat.errors import InputError
from equicat.sources.splits import Kind, SplitConfig, assign

ADSORBATES = ("H", "O", "C", "CO", "OH", "CH", "N", "NO")
METALS = ("Cu", "Pd", "Ag", "Au", "Pt", "Ni")


def kind(sid: str, adsorbate: str, catalyst: str, *extra: str) -> Kind:
    symbols = [*adsorbate.replace("O2", "O"), catalyst, *extra]
    return Kind(sid, adsorbate, catalyst, frozenset(atomic_numbers[s] for s in symbols))


def grid(n_alloys: int = 10) -> list[Kind]:
    """Adsorbates on binary alloys, so that no element is in one catalyst only."""
    alloys = [(a, b) for i, a in enumerate(METALS) for b in METALS[i + 1 :]][:n_alloys]
    return [
        Kind(f"{a}{b}-{ads}", ads, f"{a}{b}", frozenset(atomic_numbers[s] for s in (a, b, *ads)))
        for a, b in alloys
        for ads in ADSORBATES
    ]


def elements(systems: list[Kind]) -> set[int]:
    return set().union(*(system.elements for system in systems))


@pytest.mark.parametrize("seed", range(5))
def test_drawn_splits(seed):
    systems = grid()
    assignment = assign(systems, SplitConfig(seed=seed))
    assert tuple(assignment.splits) == SPLITS
    placed = Counter(sid for sids in assignment.splits.values() for sid in sids)
    assert placed == Counter(system.sid for system in systems), "each system once"
    by_sid = {system.sid: system for system in systems}
    trained = [by_sid[sid] for sid in assignment.splits["train"]]
    adsorbates, catalysts = ({getattr(s, name) for s in trained} for name in ("adsorbate", "catalyst"))
    for split, sids in assignment.splits.items():
        for sid in sids:
            unseen = (by_sid[sid].adsorbate not in adsorbates, by_sid[sid].catalyst not in catalysts)
            assert unseen == UNSEEN[split], (split, sid)
            assert by_sid[sid].elements <= elements(trained)
    n = len(systems)
    assert len(assignment.splits["val_id"]) == n // 10
    for held_out in ("adsorbate", "catalyst"):
        names = getattr(assignment, f"held_out_{held_out}s")
        share = sum(getattr(s, held_out) in names for s in systems) / n
        assert 0.1 <= share <= 0.2
    assert assignment.notes == []


def test_the_seed_decides():
    systems = grid()
    assert assign(systems, SplitConfig(seed=3)) == assign(systems, SplitConfig(seed=3))
    assert assign(systems, SplitConfig(seed=3)).splits != assign(systems, SplitConfig(seed=4)).splits


def test_subsets_lie_in_each_other_and_know_every_element():
    systems = grid()
    assignment = assign(systems, SplitConfig(seed=1))
    n = len(assignment.splits["train"])
    assert assignment.subsets == sorted({n // 2, n // 4} - {0})
    by_sid = {system.sid: system for system in systems}
    train = [by_sid[sid] for sid in assignment.splits["train"]]
    assert elements(train[: assignment.subsets[0]]) == elements(train)
    assert assign(systems, SplitConfig(subsets=(5, 2, 5))).subsets == [2, 5]
    assert assign(systems, SplitConfig(subsets=())).subsets == []
    with pytest.raises(InputError, match=r"subsets \[999\]: there are \d+ training systems"):
        assign(systems, SplitConfig(subsets=(999,)))


def test_a_subset_too_small_for_all_elements_says_so():
    assignment = assign(grid(), SplitConfig(subsets=(1,)))
    assert any("subset of 1 systems is too small for all elements; it lacks" in note for note in assignment.notes)


def test_named_ones_are_held_out():
    assignment = assign(grid(), SplitConfig(held_out_adsorbates=("CO", "NO"), held_out_catalysts=("CuPd",)))
    assert set(assignment.splits["val_ood_both"]) == {"CuPd-CO", "CuPd-NO"}
    assert len(assignment.splits["val_ood_cat"]) == 6
    assert len(assignment.splits["val_ood_ads"]) == 18
    only = assign(grid(), SplitConfig(held_out_adsorbates=("CO",)))
    assert "val_ood_cat" not in only.splits, "who names adsorbates gets no drawn catalysts"


def test_few_systems_are_divided_at_random_and_this_is_said():
    systems = [kind(str(i), "O", "Cu") for i in range(10)]
    assignment = assign(systems, SplitConfig())
    assert {name: len(sids) for name, sids in assignment.splits.items()} == {"train": 9, "val_id": 1}
    assert assignment.notes[0].startswith("no val_ood splits: 10 systems are too few to hold any out (20 are enough)")
    two = assign([kind(str(i), "OC"[i % 2], METALS[i % 5], "Cu") for i in range(30)], SplitConfig(val_share=0.0))
    assert two.notes[0].startswith("no val_ood_ads: 2 adsorbates are too few to hold any out (5 are enough)")


def test_what_training_needs_is_not_held_out():
    """Five metals, each in one catalyst only: without one of them training would not know the element."""
    systems = [kind(f"{m}-{a}", a, m) for m in METALS[:5] for a in ("H", "O", "OH", "N", "NO", "C", "CO")]
    assignment = assign(systems, SplitConfig())
    assert assignment.held_out_catalysts == []
    assert any("no val_ood_cat: each catalyst is needed in training" in note for note in assignment.notes)
    alone = [kind(f"{m}", "O", m) for m in METALS]
    assert "val_id" not in assign(alone, SplitConfig()).splits
    assert any("no val_id" in note for note in assign(alone, SplitConfig()).notes)


def test_given_splits_are_kept():
    systems = grid()[:4]
    given = dict(zip((s.sid for s in systems), ("test", "train", "train", "val_id"), strict=True))
    assignment = assign(systems, SplitConfig(), given)
    assert {name: set(sids) for name, sids in assignment.splits.items()} == {
        "train": {systems[1].sid, systems[2].sid},
        "val_id": {systems[3].sid},
        "test": {systems[0].sid},
    }


def test_unknown_elements_are_noted():
    systems = [kind("a", "O", "Cu"), kind("b", "O", "Ru")]
    assignment = assign(systems, SplitConfig(), {"a": "train", "b": "test"})
    assert assignment.notes == ["test has elements that no training system has (Ru): no model can do it"]


class TestBadInput:
    def test_unknown_names(self):
        with pytest.raises(InputError, match=r"no adsorbate 'COH' to hold out.*did you mean.*found C, CH, CO"):
            assign(grid(), SplitConfig(held_out_adsorbates=("COH",)))

    def test_names_are_compared_as_compositions(self):
        def held_out(**names: tuple[str, ...]) -> tuple[list[str], list[str]]:
            assignment = assign(systems, SplitConfig(**names))
            return assignment.held_out_adsorbates, assignment.held_out_catalysts

        elements = frozenset({8, 29})
        systems = [
            Kind(f"{a}{c}{i}", a, c, elements) for a in ("OH", "O", "CO+O") for c in ("Cu3Pd", "Cu") for i in range(3)
        ]
        for name in ("OH", "HO", "*OH"):
            assert held_out(held_out_adsorbates=(name,)) == (["OH"], [])
        assert held_out(held_out_adsorbates=("O+OC",)) == (["CO+O"], [])
        assert held_out(held_out_catalysts=("PdCu3",)) == ([], ["Cu3Pd"])
        with pytest.raises(InputError, match="no catalyst 'Cu6Pd2'"):
            held_out(held_out_catalysts=("Cu6Pd2",))

    def test_isomers_of_different_names_are_told_apart(self):
        systems = [Kind(f"{a}{i}", a, "Cu", frozenset({8})) for a in ("COH", "CHO", "O") for i in range(3)]
        assert assign(systems, SplitConfig(held_out_adsorbates=("COH",))).held_out_adsorbates == ["COH"]
        assert assign(systems, SplitConfig(held_out_adsorbates=("OCH",))).held_out_adsorbates == ["CHO", "COH"]

    def test_nothing_left(self):
        with pytest.raises(InputError, match="nothing is left to train on"):
            assign([kind("a", "O", "Cu")], SplitConfig(held_out_adsorbates=("O",)))

    def test_config(self):
        with pytest.raises(
            InputError, match=r"split\.val_share is 1\.5; it must be a number of at least 0 and below 1"
        ):
            SplitConfig(val_share=1.5)
        with pytest.raises(InputError, match="one of name, key and file"):
            SplitConfig(name="train", key="split")


def test_write_split(tmp_path):
    frames = [labelled(i) for i in range(3)]
    systems = [replace(f, energy=None, forces=None, fid=None, relaxed_positions=f.positions) for f in frames]
    assert write_split(tmp_path, "train", iter(frames), iter(systems), DatasetInfo()) == {"systems": 3, "frames": 3}
    assert len(Store(splits_of(tmp_path, "s2ef")["train"])) == 3
    assert "relaxed_positions" in Store(splits_of(tmp_path, "is2rs")["train"]).fields
    assert write_split(tmp_path, "val_id", [], iter(systems), DatasetInfo()) == {"systems": 3, "frames": 0}
    assert "val_id" not in splits_of(tmp_path, "s2ef")
