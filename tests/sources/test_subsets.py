"""Subsets are nested, repeatable and named."""

from itertools import pairwise

import numpy as np
import pytest

from equicat.data.info import DatasetInfo
from equicat.data.store import Store, write_store
from equicat.errors import InputError
from equicat.sources.packing import PackOptions, pack
from equicat.sources.subsets import nested_subset, size_of, subset_pieces
from equicat.testing import example_structures


def test_a_smaller_one_is_in_a_larger_one():
    sizes = (1, 10, 300, 999, 1000)
    subsets = [nested_subset(1000, n, seed=3) for n in sizes]
    for n, subset in zip(sizes, subsets, strict=True):
        assert len(np.unique(subset)) == n
        assert (np.diff(subset) > 0).all()
    for small, large in pairwise(subsets):
        assert np.isin(small, large).all()
    assert not np.array_equal(nested_subset(1000, 10, seed=4), subsets[1])


def test_names():
    sizes = {"10k": 10_000, "100k": 100_000, "200k": 200_000, "2M": 2_000_000, "37": 37, 5: 5}
    assert [size_of(name) for name in sizes] == list(sizes.values())
    for bad in ("20k", "0", "-3", "1.5"):
        with pytest.raises(InputError, match=rf"size '{bad}' is neither a number of structures nor one of 10k, 100k"):
            size_of(bad)


def test_too_large():
    with pytest.raises(InputError, match=r"subset of 11 structures is asked for, there are 10"):
        nested_subset(10, 11, 0)


def test_store_of_a_subset(tmp_path):
    structures = [s for seed in range(5) for s in example_structures((8, 29), seed)]
    write_store(tmp_path / "all", structures, DatasetInfo("total"))
    info = Store(tmp_path / "all").info
    for size in (4, 7):
        pieces = subset_pieces(tmp_path / "all", size, 1, shard_size=3)
        pack(tmp_path / f"n{size}", pieces, info, PackOptions(progress=False))
    rows = nested_subset(len(structures), 7, 1)
    store = Store(tmp_path / "n7")
    assert [shard["n_structures"] for shard in store.shards] == [3, 3, 1]
    for row, back in zip(rows, store, strict=True):
        np.testing.assert_array_equal(back.positions, structures[row].positions)
    small = {s.positions.tobytes() for s in Store(tmp_path / "n4")}
    assert small < {s.positions.tobytes() for s in store}
