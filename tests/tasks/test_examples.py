"""Structures that an evaluation keeps whole: a file gives back what went into it, older files what they have."""

import numpy as np

from equicat.tasks.examples import FIELDS, Example, Frames, arrays_of, examples_in, what_in


def example(n: int, why: str = "", frames: Frames | None = None) -> Example:
    rng = np.random.default_rng(n)
    shapes = {"numbers": (n,), "fixed": (n,), "tags": (n,)}
    fields = {name: rng.integers(2, size=shapes.get(name, (n, 3))) for name in FIELDS}
    scores = {"energy_error": 0.1 * n, "vector_error": 0.2 * n, "moved": float("nan")}
    return Example(f"system {n}", fields, rng.normal(size=(3, 3)), (0.5, float("nan")), scores, why, frames)


def test_a_file_gives_back_what_went_into_it():
    frames = Frames(np.array([0, 7]), np.array([1.0, 0.5]), np.array([2.0, 0.1]), np.arange(24.0).reshape(2, 4, 3))
    given = [example(3), example(4, "worst", frames), example(1)]
    arrays = arrays_of(given, "displacements")
    assert what_in(arrays) == "displacements"
    for found, expected in zip(examples_in(arrays), given, strict=True):
        assert (found.name, found.why) == (expected.name, expected.why)
        for name in FIELDS:
            np.testing.assert_array_equal(found.fields[name], expected.fields[name])
        np.testing.assert_array_equal(found.cell, expected.cell)
        np.testing.assert_array_equal(found.energies, expected.energies)
        np.testing.assert_equal(found.scores, expected.scores)
        assert (found.frames is None) == (expected.frames is None)
    found = examples_in(arrays)[1].frames
    for name in ("steps", "energies", "fmax", "positions"):
        np.testing.assert_array_equal(getattr(found, name), getattr(frames, name))


def test_files_of_earlier_versions_have_less():
    arrays = {
        k: v
        for k, v in arrays_of([example(2), example(3)], "displacements").items()
        if k.removeprefix("example_") in ("numbers", "positions", "true", "pred", "n_atoms", "names")
    }
    found = examples_in(arrays)
    assert [e.name for e in found] == ["system 2", "system 3"]
    assert [len(e.fields["numbers"]) for e in found] == [2, 3]
    assert set(found[0].fields) == {"numbers", "positions", "true", "pred"}
    assert found[0].scores == {}
    assert found[0].frames is None
    assert what_in(arrays) == "displacements"
    assert examples_in({}) == []
