"""The data set directory: where things are, and what is said where they are not."""

import pytest
from conftest import labelled

from equicat.data.directory import (
    read_description,
    require_store,
    splits_of,
    store_path,
    stores_in,
    subset_path,
    write_description,
    write_split,
)
from equicat.data.info import DatasetInfo
from equicat.errors import InputError

INFO = DatasetInfo("adsorption", {"H2": -6.7}, "made up")


@pytest.fixture
def root(tmp_path):
    for name in ("val_id", "train"):
        write_split(tmp_path, name, [labelled(0)], [], INFO)
    write_split(subset_path(tmp_path, 50), "train", [labelled(0)], [], INFO)
    (tmp_path / ".left").mkdir()
    (tmp_path / ".left" / "index.json").write_text("{}")
    return tmp_path


def test_places(root):
    assert splits_of(root, "s2ef")["train"] == store_path(root, "s2ef", "train") == root / "s2ef" / "train"
    assert store_path(root, "is2rs", "train") == store_path(root, "is2re", "train")
    found = [path.relative_to(root).as_posix() for path in stores_in(root)]
    assert found == ["s2ef/train", "s2ef/val_id", "subsets/50/s2ef/train"], "training first, nothing hidden"


def test_what_is_no_store_names_those_there_are(root):
    assert require_store(root / "s2ef" / "train") == root / "s2ef" / "train"
    with pytest.raises(InputError, match=r"holds several splits or no store; name one of: .*s2ef/train, s2ef/val_id"):
        require_store(root)
    with pytest.raises(InputError, match="nowhere: no store"):
        require_store(root / "nowhere")
    (root / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no data set; found nothing"):
        stores_in(root / "empty")


def test_description(root):
    assert read_description(root) == {}
    written = write_description(root, INFO, {"train": {"frames": 1}})
    assert read_description(root) == written
    assert (written["energy_reference"], written["splits"]) == ("adsorption", {"train": {"frames": 1}})
    (root / "dataset.json").write_text("{")
    with pytest.raises(InputError, match=r"dataset.json: missing or damaged"):
        read_description(root)
