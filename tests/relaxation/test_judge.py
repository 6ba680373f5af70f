"""Classes of relaxed systems beside those that a reference relaxed: the definitions of CatBench, limit by limit."""

import dataclasses

import numpy as np
import pytest
from emt_slabs import structures

from equicat.relaxation.judge import class_of
from equicat.relaxation.summary import summary_of, words_on

(SLAB,) = structures(1)
REFERENCE = dataclasses.replace(SLAB, energy=-1.0)
ADSORBATE = int(np.flatnonzero(SLAB.tags == 2)[0])
FREE_METAL = int(np.flatnonzero((SLAB.tags == 1) & ~SLAB.fixed)[0])


def relaxed(atom=ADSORBATE, by=(0.0, 0.0, 0.0), energy=-1.0, **info):
    """The reference with one atom moved (Å), as a relaxation by a model would return it."""
    positions = REFERENCE.positions.copy()
    positions[atom] += by
    said = {"converged": True, "flags": "", "n_steps": 3, "seconds": 0.5, **info}
    return dataclasses.replace(REFERENCE, positions=positions, energy=energy, info=said)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (relaxed(), "normal"),
        (relaxed(by=(0.1, 0.0, 0.0)), "normal"),
        (relaxed(by=(1.5, 0.0, 0.0)), "migrated"),
        (relaxed(by=REFERENCE.cell[0]), "normal"),  # another image of the same structure
        (relaxed(FREE_METAL, (0.4, 0.0, 0.0)), "normal"),
        (relaxed(FREE_METAL, (0.6, 0.0, 0.0)), "anomaly"),
        (relaxed(energy=0.9), "normal"),
        (relaxed(energy=1.1), "anomaly"),
        (relaxed(by=(1.5, 0.0, 0.0), energy=1.1), "migrated"),
        (relaxed(converged=False), "anomaly"),
        (relaxed(by=(1.5, 0.0, 0.0), converged=False), "anomaly"),
        (relaxed(energy=None), "anomaly"),
    ],
)
def test_a_class_is_the_first_that_applies(after, expected):
    assert class_of(REFERENCE, after) == expected


def test_a_slab_without_adsorbate_cannot_migrate():
    bare = dataclasses.replace(REFERENCE, tags=np.where(REFERENCE.tags == 2, 1, REFERENCE.tags))
    moved = dataclasses.replace(relaxed(by=(0.45, 0.0, 0.0)), tags=bare.tags)
    assert class_of(bare, moved) == "normal"


def test_the_error_of_normal_systems_is_theirs_alone():
    after = [relaxed(energy=-0.9), relaxed(energy=-1.3), relaxed(energy=9.0, flags="desorbed"), relaxed(energy=None)]
    summary = summary_of(after, [REFERENCE] * 4)
    assert summary["classes"] == {"normal": 2, "migrated": 0, "anomaly": 2}
    assert summary["energy_mae_normal"] == pytest.approx(0.2)
    assert (summary["flags"], summary["success_rate"]) == ({"desorbed": 1}, 0.75)
    text = "; ".join(words_on(summary | {"seconds_a_system_direct": 0.001}))
    assert "energy MAE of the normal ones 0.2000 eV" in text
    assert "3.0 steps and 0.500 s a system on average; 0.001 s by the direct model" in text
    none_normal = summary_of(after[2:], [REFERENCE] * 2)
    assert none_normal["energy_mae_normal"] is None
    assert "MAE" not in "; ".join(words_on(none_normal))
