"""The restricted unpickler: every form that OC20's data come in, and nothing that runs."""

import collections
import io
import os
import pickle
import subprocess

import lmdb
import numpy as np
import pytest
import torch
from oc20_samples import torch_geometric
from places import OC20_SAMPLES, needs_oc20_samples

from equicat.errors import InputError
from equicat.sources.oc20.pickles import load_mapping, load_pickle, load_record


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.call


TENSORS = {
    "float32": torch.tensor([[1.5, -2.0, 3.25]]),
    "float64": torch.tensor([1e-300, 2.0], dtype=torch.float64),
    "float16": torch.tensor([0.5], dtype=torch.float16),
    "int64": torch.tensor([-(2**62), 5]),
    "int32": torch.tensor([3], dtype=torch.int32),
    "uint8": torch.tensor([255, 0], dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "transposed": torch.arange(12.0).view(3, 4).T,
    "slice": torch.arange(24.0).view(2, 3, 4)[:, 1:, ::2],
    "expanded": torch.tensor([7.0]).expand(3, 2),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name):
    tensor = TENSORS[name]
    back = load_pickle(pickle.dumps(tensor), "a")
    assert back.dtype == tensor.numpy().dtype
    np.testing.assert_array_equal(back, tensor.numpy())


ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(4, dtype=">i4"),
    np.array([True, False]),
    np.array(["Cu", "Pt"]),
]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=["C", "F", "big-endian", "bool", "text"])
def test_arrays(array, protocol):
    with torch_geometric("new") as make:
        data = pickle.dumps(make(a=array), protocol)
    np.testing.assert_array_equal(load_record(data, "a")["a"], array)


def test_numpy_scalars_of_both_names_of_its_core():
    value = {"y": np.float64(-1.25), "n": np.int64(3), "t": True, "s": ("x", None)}
    data = pickle.dumps(value, 2)
    assert b"numpy._core.multiarray" in data
    assert load_pickle(data, "a") == value
    assert load_pickle(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"), "a") == value


@pytest.mark.parametrize("style", ["old", "new"])
def test_data_of_both_generations(style):
    with torch_geometric(style) as make:
        data = pickle.dumps(make(pos=torch.ones(2, 3), y=np.float64(0.5), sid=7, box=collections.OrderedDict(a=1)), 4)
    record = load_record(data, "a")
    assert set(record) == {"pos", "y", "sid", "box"}
    assert record["pos"].shape == (2, 3)
    assert record["y"] == 0.5


MALICIOUS = {
    "system": (Calls(os.system, "touch {}"), "posix.system"),
    "eval": (Calls(eval, "open('{}', 'w')"), "eval"),  # Python 2's name of the module in old protocols
    "popen": (Calls(subprocess.Popen, ["touch", "{}"]), "Popen"),
    "nested": ({"pos": [Calls(os.system, "touch {}")]}, "posix.system"),
    "torch": (Calls(torch.load, "{}"), "torch.serialization.load"),
    "numpy": (Calls(np.load, "{}"), "numpy.load"),
    "file": (Calls(io.open, "{}", "w"), "open"),
}


def with_path(value, path):
    if isinstance(value, Calls):
        function, arguments = value.call
        arguments = [a.format(path) if isinstance(a, str) else a for a in arguments]
        return Calls(function, *([s.format(path) for s in a] if isinstance(a, list) else a for a in arguments))
    if isinstance(value, dict):
        return {k: with_path(v, path) for k, v in value.items()}
    return [with_path(v, path) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", MALICIOUS)
def test_what_runs_is_refused_by_name_and_not_run(tmp_path, name, protocol):
    value, asked_for = MALICIOUS[name]
    data = pickle.dumps(with_path(value, tmp_path / "ran"), protocol)
    with pytest.raises(InputError, match=rf"data.lmdb, entry 3: the pickle asks for \S*{asked_for}, .* refused"):
        load_pickle(data, "data.lmdb, entry 3")
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_inside_a_tensor_is_refused_as_well(tmp_path):
    """A storage is a pickle in the pickle, which PyTorch reads without restriction."""
    evil = pickle.dumps(Calls(os.system, f"touch {tmp_path / 'ran'}"), 2)
    with pytest.raises(InputError, match=r"posix.system"):
        load_pickle(pickle.dumps(Calls(torch.storage._load_from_bytes, evil)), "a")
    assert list(tmp_path.iterdir()) == []


def test_allowed_names_cannot_be_changed_or_chained():
    dotted = b"\x80\x04\x8c\x0bcollections\x94\x8c\x14OrderedDict.fromkeys\x94\x93."
    with pytest.raises(InputError, match=r"asks for collections.OrderedDict.fromkeys"):
        load_pickle(dotted, "a")
    # BUILD would set attributes of what stands before it.
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("torch_geometric.data.data", "Data")):
        data = b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n}(X\x01\x00\x00\x00aK\x01ub."
        with pytest.raises(InputError, match="damaged pickle"):
            load_pickle(data, "a")


@pytest.mark.parametrize(
    "arguments",
    [
        (2, (2,), (1,)),  # past the end
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (1,)),
        (0, (10**9,), (1,)),
    ],
)
def test_tensors_that_reach_outside_their_storage(arguments):
    storage = torch.storage.TypedStorage(wrap_storage=torch.arange(3.0).untyped_storage(), dtype=torch.float32)
    call = Calls(torch._utils._rebuild_tensor_v2, storage, *arguments, False, {})
    with pytest.raises(InputError, match=r"damaged pickle \(ValueError: a tensor"):
        load_pickle(pickle.dumps(call), "a")


def test_arrays_of_objects_are_refused():
    with pytest.raises(InputError, match=r"damaged pickle .*not a plain dtype: 'O8'"):
        load_pickle(pickle.dumps(np.array([{}], dtype=object), 4), "a")


def test_damage(tmp_path):
    data = pickle.dumps({"a": torch.ones(3)})
    with pytest.raises(InputError, match=r"x.lmdb, entry 1: damaged pickle"):
        load_pickle(data[:-9], "x.lmdb, entry 1")
    with pytest.raises(InputError, match=r"entry 1: holds a dict, expected a torch_geometric Data object"):
        load_record(data, "entry 1")


MAPPING_ROW = {
    "bulk_id": 6510,
    "ads_id": 69,
    "bulk_mpid": "mp-22179",
    "bulk_symbols": "Si2Ti2Y2",
    "ads_symbols": "*N2",
    "miller_index": (2, 0, 1),
    "shift": 0.145,
    "top": True,
    "adsorption_site": ((np.float64(4.5), np.float64(12.85), np.float64(16.13)),),
    "class": 1,
    "anomaly": 0,
}


class TestMapping:
    def test_reads_it(self, tmp_path):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"random2181546": MAPPING_ROW}))
        assert load_mapping(tmp_path / "m.pkl") == {"2181546": MAPPING_ROW}

    def test_refuses_the_rest(self, tmp_path):
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"random1": Calls(os.system, "true")}))
        with pytest.raises(InputError, match=r"m.pkl: the pickle asks for posix.system"):
            load_mapping(tmp_path / "m.pkl")
        (tmp_path / "m.pkl").write_bytes(pickle.dumps({"random1": "random2"}))
        with pytest.raises(InputError, match="not OC20's data mapping"):
            load_mapping(tmp_path / "m.pkl")
        with pytest.raises(InputError, match=r"none.pkl: cannot be read"):
            load_mapping(tmp_path / "none.pkl")


@needs_oc20_samples
@pytest.mark.parametrize("name", ["is2re_lmdb_2020", "is2re_lmdb_2025"])
def test_genuine_files(name):
    path = OC20_SAMPLES / name / "data.lmdb"
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env, env.begin() as transaction:
        records = [load_record(bytes(transaction.get(str(i).encode())), str(i)) for i in range(32)]
    for record in records:
        assert record["pos"].shape == record["pos_relaxed"].shape == (record["natoms"], 3)
        edges, vectors = record["edge_index"], record["pos"]
        row, column = edges
        d = vectors[row] - vectors[column] + record["cell_offsets"] @ record["cell"][0]
        if "edge_distance_vec" in record:  # `distances` of the newer writer are not always those of its edges
            np.testing.assert_allclose(d, record["edge_distance_vec"], atol=1e-4)
        else:
            np.testing.assert_allclose(np.linalg.norm(d, axis=1), record["distances"], atol=1e-4)
