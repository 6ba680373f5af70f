"""`equicat study locality`: distances and bins by brute force, the verdict on direct and relaxed energies."""

from itertools import pairwise, product

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111
from study_results import result, write_presets

from equicat import Structure
from equicat.data.datasets import open_dataset
from equicat.studies.cells import Plan
from equicat.studies.distances import binned, distance_to_adsorbate, reach_of_adsorbate, thirds
from equicat.studies.locality import LOCALITY, LocalityOptions, cutoff_table, explanation, located, zones
from equicat.studies.study_data import StudyData


@pytest.fixture(scope="module")
def slab() -> Structure:
    """An oblique slab with two adsorbate atoms near the edge of the cell."""
    atoms = fcc111("Cu", (2, 3, 3), vacuum=6.0)
    atoms.set_tags(0)
    for height in (1.2, 2.4):
        add_adsorbate(atoms, "O", height, "ontop", offset=(0, 0))
    atoms.set_tags([2 if n == 8 else 0 for n in atoms.numbers])
    return Structure.from_ase(atoms)


def brute_force(s: Structure, a: int, b: int) -> float:
    """The distance of two atoms over all images of three cells each way."""
    shifts = [np.array(n) * s.pbc for n in product(range(-3, 4), repeat=3)]
    return min(np.linalg.norm(s.positions[b] + n @ s.cell - s.positions[a]) for n in shifts)


def test_distances_are_those_of_the_nearest_images(slab):
    adsorbate = np.flatnonzero(slab.tags == 2)
    expected = [min(brute_force(slab, a, b) for b in adsorbate) for a in range(len(slab))]
    np.testing.assert_allclose(distance_to_adsorbate(slab), expected, atol=1e-9)
    assert (distance_to_adsorbate(slab)[adsorbate] == 0).all()


def test_reach_is_the_furthest_adsorbate_atom_from_its_nearest_slab_atom(slab):
    adsorbate, others = np.flatnonzero(slab.tags == 2), np.flatnonzero(slab.tags != 2)
    expected = max(min(brute_force(slab, a, b) for b in others) for a in adsorbate)
    assert reach_of_adsorbate(slab) == pytest.approx(expected)
    assert expected > 2.0


def test_without_adsorbate_there_is_no_distance():
    bare = Structure.from_ase(fcc111("Cu", (2, 2, 2), vacuum=6.0))
    bare = Structure(bare.numbers, bare.positions, bare.cell, bare.pbc)
    assert np.isnan(distance_to_adsorbate(bare)).all()
    assert np.isnan(reach_of_adsorbate(bare))


def test_bins_by_brute_force():
    rng = np.random.default_rng(0)
    distances, errors, targets = rng.uniform(0, 6, 200), rng.normal(size=200), rng.normal(size=200)
    distances[:5] = np.nan
    edges = (0.0, 2.0, 3.5, 6.0, 7.0)
    found = binned(distances, errors, targets, edges)
    assert [b.low for b in found] == [0.0, 2.0, 3.5], "nothing lies in the last interval"
    for b in found:
        here = [k for k in range(200) if b.low <= distances[k] < b.high]
        assert b.n == len(here)
        assert b.mean == pytest.approx(sum(abs(errors[k]) for k in here) / len(here))
        assert b.guess == pytest.approx(sum(abs(targets[k]) for k in here) / len(here))
    assert sum(b.n for b in found) == 195


def test_thirds_hold_as_many_each():
    values = np.arange(30, dtype=float)
    ends = thirds(values)
    counts = [((values >= low) & (values < high)).sum() for low, high in pairwise(ends)]
    assert counts == [10, 10, 10]
    assert thirds(np.array([np.nan])) == []


def test_errors_are_those_of_the_free_atoms_they_are_given_to(data, tmp_path):
    (tmp_path / "presets").mkdir()
    preset = write_presets(tmp_path / "presets")
    options = LocalityOptions(
        ("allegro-l1",), seeds=1, epochs=1, presets=str(preset), cutoffs=(3.0, 4.0), tasks=("s2ef",), relax=False
    )
    print(LOCALITY.conduct(data, tmp_path / "study", options))
    study = StudyData(data)
    plan = Plan.read(tmp_path / "study")
    val = open_dataset(study.stores("s2ef")["val_id"])
    free = ~val.array("fixed")
    results = plan.results()
    assert [r["cutoff"] for r in results] == [3.0, 4.0]
    for e, result_ in zip(located(plan, study), results, strict=True):
        np.testing.assert_allclose(e.errors.targets, val.array("forces")[free].ravel(), rtol=1e-5, atol=1e-6)
        expected = np.concatenate([distance_to_adsorbate(s)[~s.fixed] for s in val])
        np.testing.assert_array_equal(e.errors.distances[1::3], expected)
        mae = result_["splits"]["val_id"]["model"]["forces_mae"]
        assert np.abs(e.errors.errors).mean() == pytest.approx(mae, rel=1e-5)
        found = zones([e, e], 1.0)
        assert sum(b.n for b in found.values()) == 2 * np.isfinite(e.errors.distances).sum()
    assert "by distance from the adsorbate" in (tmp_path / "study" / "table.md").read_text()


def energies(model: str, cutoff: float, direct: float, relaxed: float, seeds: int = 3) -> list[dict]:
    rows = {"model": {"forces_mae": 0.1}, "model, relaxed": {"energy_mae": relaxed, "positions_mae": 0.1}}
    found = []
    for seed in range(seeds):
        shaken = {k: {m: v * (1 + 0.01 * seed) for m, v in row.items()} for k, row in rows.items()}
        found.append(result(model, seed, direct * (1 + 0.01 * seed), cutoff=cutoff))
        found.append(result(model, seed, 0.0, cutoff=cutoff, task="s2ef", splits={"val_id": shaken}))
    return found


@pytest.mark.parametrize(
    ("direct", "relaxed", "words"),
    [
        (0.4, 0.2, "larger than that of relaxed ones by 1.00 on average over 1 cutoffs; it is larger by more than two"),
        (0.2, 0.4, "smaller than that of relaxed ones by 1.00 on average over 1 cutoffs"),
    ],
)
def test_the_explanation_is_held_against_the_numbers(direct, relaxed, words):
    results = energies("allegro-l2", 5.0, direct, relaxed) + energies("nequip", 5.0, 0.2, 0.2)
    text = explanation(results, "val_id")
    assert words in text
    assert f"| 5 | {direct / 0.2:.2f} ± 0.0" in text
    assert explanation(energies("nequip", 5.0, 0.2, 0.2), "val_id") == ""


def test_the_table_by_cutoff():
    lines = cutoff_table(energies("nequip", 4.0, 0.3, 0.2, seeds=1), "val_id").splitlines()
    assert lines[2] == "| nequip | 4 | 0.1000 | 0.3000 | 0.2000 | 0.1000 | 100.0 | 100.0 |"
