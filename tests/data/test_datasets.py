"""The store: what is written comes back, nothing half-written appears, and no label goes missing in silence."""

import json
import pickle
import re
import shutil
import weakref
from contextlib import suppress

import kills
import numpy as np
import pytest
from safetensors.numpy import load_file

from equicat.data.datasets import MemoryDataset, Subset, open_dataset, require_elements, require_labels
from equicat.data.directory import splits_of
from equicat.data.info import DatasetInfo
from equicat.data.readers import write
from equicat.data.store import Store, write_store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.describe import describe

INFO = DatasetInfo("adsorption", {"H": -1.25}, "made up", {"seed": 3})


def structure(n_atoms: int = 3, *, seed: int = 0, **changes: object) -> Structure:
    """Random numbers in every field."""
    rng = np.random.default_rng([n_atoms, seed])
    values = {
        "numbers": rng.integers(1, 90, n_atoms),
        "positions": rng.normal(size=(n_atoms, 3)),
        "cell": 8 * np.eye(3) + rng.normal(size=(3, 3)),
        "pbc": np.array([True, True, False]),
        "fixed": np.arange(n_atoms) == 0,
        "tags": rng.integers(0, 3, n_atoms),
        "energy": float(rng.normal()),
        "forces": rng.normal(size=(n_atoms, 3)),
        "relaxed_energy": float(rng.normal()),
        "relaxed_positions": rng.normal(size=(n_atoms, 3)),
        "sid": f"système-{seed}",
        "fid": seed,
    }
    return Structure(**(values | changes))


STRUCTURES = [structure(n, seed=seed) for seed, n in enumerate([3, 1, 5])]


@pytest.fixture
def store(tmp_path) -> Store:
    assert write_store(tmp_path / "train", iter(STRUCTURES), INFO) == 3
    return Store(tmp_path / "train")


def assert_same(a: Structure, b: Structure, atol: float = 0.0) -> None:
    for name in ("numbers", "pbc", "fixed", "tags", "sid", "fid", "energy", "relaxed_energy"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("positions", "cell", "forces", "stress", "relaxed_positions"):
        assert (getattr(a, name) is None) == (getattr(b, name) is None), name
        if getattr(a, name) is not None:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol, err_msg=name)


class TestStore:
    def test_gives_back_what_was_written(self, store):
        assert len(store) == 3
        for written, back in zip(STRUCTURES, store, strict=True):
            assert_same(written, back)
        assert_same(STRUCTURES[-1], store[-1])
        assert store.info == INFO
        assert store.n_atoms.tolist() == [3, 1, 5]
        assert store.elements == sorted({z for s in STRUCTURES for z in s.numbers.tolist()})
        assert store[1].where.endswith("train, structure 1")

    def test_single_precision_keeps_energies_exact(self, tmp_path):
        write_store(tmp_path / "s", STRUCTURES, INFO, precision="float32")
        store = Store(tmp_path / "s")
        assert store.array("forces").dtype == np.float32
        assert store[2].positions.dtype == np.float64
        for written, back in zip(STRUCTURES, store, strict=True):
            assert_same(written, back, atol=1e-6)

    @pytest.mark.parametrize("precision", ["float64", "float32"])
    def test_keeps_a_stress(self, tmp_path, precision):
        rng = np.random.default_rng(0)
        structures = [structure(2, seed=k, stress=rng.normal(size=(3, 3))) for k in range(3)]
        write_store(tmp_path / "s", structures, INFO, precision=precision)
        store = Store(tmp_path / "s")
        assert "stress" in store.fields
        assert store.array("stress").shape == (3, 3, 3)
        assert MemoryDataset(structures).array("stress").shape == (3, 3, 3)
        for written, back in zip(structures, store, strict=True):
            assert_same(written, back, atol=1e-6 if precision == "float32" else 0)

    def test_without_stress_has_the_fields_that_earlier_versions_wrote(self, store):
        assert store.fields[-6:] == ["energy", "forces", "relaxed_energy", "relaxed_positions", "sid", "fid"]
        assert store[0].stress is None

    def test_arrays_are_mapped_not_loaded(self, store):
        forces = store.array("forces")
        assert not forces.flags.writeable
        assert forces.shape == (9, 3)
        np.testing.assert_array_equal(forces[3:4], STRUCTURES[1].forces)

    def test_structures_do_not_share_memory_with_the_file(self, store):
        store[0].positions[:] = 0.0
        assert_same(STRUCTURES[0], store[0])

    def test_pickles_as_its_path(self, store):
        data = pickle.dumps(store)
        assert len(data) < 1000
        assert_same(STRUCTURES[2], pickle.loads(data)[2])

    def test_index_out_of_range(self, store):
        for i in (3, -4):
            with pytest.raises(IndexError, match="of 3"):
                store[i]

    def test_holds_only_labels_that_are_there(self, tmp_path):
        bare = [structure(2, forces=None, relaxed_energy=None, relaxed_positions=None, sid="", fid=None)]
        write_store(tmp_path / "s", bare, INFO)
        store = Store(tmp_path / "s")
        assert "energy" in store.fields
        assert "forces" not in store.fields
        assert "forces" not in load_file(tmp_path / "s" / "00000.safetensors")
        assert store[0].forces is None
        assert store[0].sid == ""
        with pytest.raises(InputError, match=r"no field 'forces'.*energy"):
            store.array("forces")

    def test_damage_is_named(self, store):
        shard = store.path / "00000.safetensors"
        data = shard.read_bytes()
        shard.write_bytes(data[:-8])
        with pytest.raises(InputError, match=rf"00000.safetensors: damaged, {len(data) - 8:,} bytes, .* {len(data):,}"):
            Store(store.path)[0]
        shard.write_bytes(b"\xff" * len(data))
        with pytest.raises(InputError, match=r"00000.safetensors: missing or damaged"):
            Store(store.path)[0]
        shard.unlink()
        with pytest.raises(InputError, match=r"00000.safetensors: missing or damaged"):
            Store(store.path)[0]
        (store.path / "n_atoms.npy").unlink()
        with pytest.raises(InputError, match=r"n_atoms.npy: missing or damaged"):
            _ = Store(store.path).n_atoms

    def test_verify_finds_one_changed_bit(self, store):
        assert list(store.verify()) == ["00000.safetensors", "n_atoms.npy"]
        shard = store.path / "00000.safetensors"
        data = bytearray(shard.read_bytes())
        data[-5] ^= 1
        shard.write_bytes(data)
        with pytest.raises(InputError, match=r"00000.safetensors: damaged, its SHA-256 is .* write the store again"):
            list(store.verify())
        shard.unlink()
        with pytest.raises(InputError, match=r"00000.safetensors: cannot be read"):
            list(store.verify())

    def test_newer_format(self, store):
        index = json.loads((store.path / "index.json").read_text())
        (store.path / "index.json").write_text(json.dumps(index | {"format_version": 99}))
        with pytest.raises(InputError, match=r"format version 99, this equicat reads 2; update equicat"):
            Store(store.path)

    def test_older_format(self, store):
        index = json.loads((store.path / "index.json").read_text())
        (store.path / "index.json").write_text(json.dumps(index | {"format_version": 1}))
        with pytest.raises(InputError, match=r"format version 1, this equicat reads 2; write the store again"):
            Store(store.path)

    def test_shards(self, tmp_path, monkeypatch):
        """Many small shards hold what one holds, also when few may be open at a time."""
        monkeypatch.setattr("equicat.data.store.SHARD_SIZE", 3)
        monkeypatch.setattr("equicat.data.store.OPEN_SHARDS", 2)
        structures = [structure(1 + seed % 4, seed=seed) for seed in range(10)]
        assert write_store(tmp_path / "s", iter(structures), INFO) == 10
        store = Store(tmp_path / "s")
        assert store.shard_starts == [0, 3, 6, 9, 10]
        for i in (9, 0, 4, 8, 1, -1):
            assert_same(structures[i], store[i])
        memory = MemoryDataset(structures, INFO)
        for name in [*store.fields, "n_atoms"]:
            np.testing.assert_array_equal(store.array(name), memory.array(name), err_msg=name)
        assert sum(len(fixed) for fixed, _ in store.chunks("fixed", "energy")) == store.n_atoms.sum()
        assert len(store._open) == 2

    def test_shards_are_safetensors(self, store):
        arrays = load_file(store.path / "00000.safetensors")
        np.testing.assert_array_equal(arrays["forces"], store.array("forces"))
        assert arrays["atom_offsets"].tolist() == [0, 3, 4, 9]

    def test_columns_of_info(self, tmp_path):
        rows = [{"anomaly": i, "shift": 0.5 * i, "top": i > 0, "bulk": "Cu" * i, "other": 1} for i in range(3)]
        structures = [structure(2, seed=i, info=row) for i, row in enumerate(rows)]
        write_store(tmp_path / "s", structures, INFO, columns=["anomaly", "shift", "top", "bulk"])
        store = Store(tmp_path / "s")
        for row, back in zip(rows, store, strict=True):
            del row["other"]
            assert back.info == row
        assert store.array("anomaly").tolist() == [0, 1, 2]
        assert store.array("bulk").tolist() == [b"", b"Cu", b"CuCu"]
        late = structure(2, seed=4, info={}, source="run.traj, frame 3")
        with pytest.raises(InputError, match=r"run.traj, frame 3: info has no 'anomaly', which earlier frames have"):
            write_store(tmp_path / "t", [structures[0], late], INFO, columns=["anomaly"])
        with pytest.raises(InputError, match=r"info has no text or number 'none'; found None"):
            write_store(tmp_path / "t", structures, INFO, columns=["none"])


class TestWriteStore:
    def test_is_a_stream(self, tmp_path):
        """A structure is let go of once it is written."""
        references = []

        def stream():
            for i in range(4):
                assert all(reference() is None for reference in references[:-1])
                new = structure(2, seed=i)
                references.append(weakref.ref(new))
                yield new
                del new

        assert write_store(tmp_path / "s", stream(), INFO) == 4

    def test_same_structures_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            write_store(tmp_path / name, STRUCTURES, INFO)
        for file in sorted((tmp_path / "a").iterdir()):
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name

    @pytest.mark.parametrize("label", ["energy", "forces", "relaxed_energy", "relaxed_positions", "sid", "fid"])
    def test_label_missing_from_a_later_frame(self, tmp_path, label):
        bad = structure(2, **{label: "" if label == "sid" else None}, source="run.traj, frame 7")
        with pytest.raises(InputError, match=rf"run.traj, frame 7: no {label}, which earlier frames have; found \w+"):
            write_store(tmp_path / "s", [STRUCTURES[0], bad], INFO)
        assert list(tmp_path.iterdir()) == []

    def test_label_missing_from_the_first_frame(self, tmp_path):
        bad = structure(2, forces=None, source="run.traj, frame 0")
        with pytest.raises(InputError, match=r"run.traj, frame 0: no forces"):
            write_store(tmp_path / "s", [bad, STRUCTURES[0]], INFO)

    def test_no_structures(self, tmp_path):
        with pytest.raises(InputError, match="no structures"):
            write_store(tmp_path / "s", [], INFO)
        assert list(tmp_path.iterdir()) == []

    def test_existing_target(self, tmp_path):
        write_store(tmp_path / "s", STRUCTURES, INFO)
        with pytest.raises(InputError, match="exists already"):
            write_store(tmp_path / "s", STRUCTURES[:1], INFO)
        assert write_store(tmp_path / "s", STRUCTURES[:1], INFO, overwrite=True) == 1
        assert len(Store(tmp_path / "s")) == 1

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_kill_at_any_change_leaves_the_old_store_or_the_new_one(self, tmp_path, overwrite):
        path, sizes = tmp_path / "s", []

        def old():
            if overwrite:
                write_store(path, STRUCTURES[:1], INFO)

        def new():
            write_store(path, STRUCTURES, INFO, overwrite=overwrite)

        for _ in kills.at_every_change(new, old):
            with suppress(InputError):  # it exists, perhaps again
                write_store(path, STRUCTURES, INFO)
            energies = list(Store(path).array("energy"))
            assert energies == [s.energy for s in STRUCTURES[: len(energies)]]
            sizes.append(len(energies))
            for left in tmp_path.iterdir():
                shutil.rmtree(left)
        assert len(sizes) >= 5
        assert sizes[0] == (1 if overwrite else 3)
        assert set(sizes) == ({1, 3} if overwrite else {3})

    def test_failure_leaves_the_old_store(self, tmp_path):
        write_store(tmp_path / "s", STRUCTURES, INFO)

        def broken():
            yield STRUCTURES[0]
            raise RuntimeError("out of disk")

        with pytest.raises(RuntimeError, match="out of disk"):
            write_store(tmp_path / "s", broken(), INFO, overwrite=True)
        assert len(Store(tmp_path / "s")) == 3
        assert [p.name for p in tmp_path.iterdir()] == ["s"]

    def test_unknown_precision_and_reference(self, tmp_path):
        with pytest.raises(InputError, match="float16"):
            write_store(tmp_path / "s", STRUCTURES, INFO, precision="float16")
        with pytest.raises(InputError, match=r"'adsorbtion' \(did you mean 'adsorption'"):
            DatasetInfo("adsorbtion")


class TestMemoryDataset:
    def test_agrees_with_the_store(self, store):
        memory = MemoryDataset(STRUCTURES, INFO)
        assert memory.elements == store.elements
        assert sorted(memory.fields) == sorted(store.fields)
        for name in [*store.fields, "n_atoms"]:
            np.testing.assert_array_equal(memory.array(name), store.array(name), err_msg=name)

    def test_no_structures(self):
        with pytest.raises(InputError, match="no structures"):
            MemoryDataset([])


class TestOpenDataset:
    def test_file(self, tmp_path):
        write(tmp_path / "val.extxyz.gz", STRUCTURES)
        dataset = open_dataset(tmp_path / "val.extxyz.gz", energy_reference="relative")
        assert len(dataset) == 3
        assert dataset.info.energy_reference == "relative"
        assert open_dataset(tmp_path / "val.extxyz.gz").info.energy_reference == "total"

    def test_store_knows_its_energies(self, store):
        assert isinstance(open_dataset(store.path, energy_reference="adsorption"), Store)
        with pytest.raises(InputError, match=r"'adsorption', not 'total'"):
            open_dataset(store.path, energy_reference="total")
        with pytest.raises(InputError, match="energy key"):
            open_dataset(store.path, energy_key="e")

    def test_directory_of_stores_lists_them(self, tmp_path):
        write_store(tmp_path / "data" / "s2ef" / "train", STRUCTURES, INFO)
        with pytest.raises(InputError, match="s2ef/train"):
            open_dataset(tmp_path / "data")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            open_dataset(tmp_path / "nothing")


class TestSplits:
    @pytest.fixture
    def root(self, tmp_path):
        for name in ("s2ef/val_id", "s2ef/train", "is2re/train"):
            write_store(tmp_path / "data" / name, STRUCTURES, INFO)
        return tmp_path / "data"

    def test_root_task_and_split(self, root):
        assert list(splits_of(root, "s2ef")) == ["train", "val_id"]
        assert splits_of(root, "is2rs") == {"train": root / "is2re" / "train"}
        assert list(splits_of(root / "s2ef", "s2ef")) == ["train", "val_id"]
        assert splits_of(root / "s2ef" / "val_id", "s2ef") == {"val_id": root / "s2ef" / "val_id"}

    def test_file(self, tmp_path):
        write(tmp_path / "my_test.extxyz.xz", STRUCTURES)
        assert splits_of(tmp_path / "my_test.extxyz.xz", "s2ef") == {"my_test": tmp_path / "my_test.extxyz.xz"}

    def test_nothing_for_the_task_says_what_is_there(self, tmp_path):
        write_store(tmp_path / "data" / "s2ef" / "train", STRUCTURES, INFO)
        with pytest.raises(InputError, match=r"no splits for task 'is2re'; found s2ef/train"):
            splits_of(tmp_path / "data", "is2re")
        with pytest.raises(InputError, match=r"unknown task 's2fe' \(did you mean 's2ef'"):
            splits_of(tmp_path / "data", "s2fe")
        with pytest.raises(InputError, match="no such file or directory"):
            splits_of(tmp_path / "dta", "s2ef")


class TestRequireLabels:
    def test_passes_when_all_are_there(self, store):
        require_labels(store, ["energy", "forces"])

    def test_names_the_first_frame_without_and_the_keys_found(self):
        without = structure(2, energy=None, source="b.extxyz, frame 4", info={"energy_ads": 1.0})
        dataset = MemoryDataset([STRUCTURES[0], without])
        with pytest.raises(
            InputError,
            match=r"b.extxyz, frame 4: no label 'energy'; found forces.*energy_ads.*energy key \(1 of 2 structures",
        ):
            require_labels(dataset, ["forces", "energy"])

    def test_names_the_columns_that_may_hold_the_forces(self):
        without = structure(2, forces=None, source="b.extxyz, frame 4", columns=("REF_forces",))
        dataset = MemoryDataset([structure(3), without])
        message = r"b.extxyz, frame 4: no label 'forces'; found .*; further columns of atoms: REF_forces; .* forces key"
        with pytest.raises(InputError, match=message):
            require_labels(dataset, ["forces"])
        with pytest.raises(InputError, match=r"1 of 1 structures"):
            require_labels(Subset(dataset, np.array([1])), ["forces"])

    def test_store_without_forces(self, tmp_path):
        write_store(tmp_path / "s", [structure(2, forces=None)], INFO)
        with pytest.raises(InputError, match=r"structure 0: no label 'forces'; found energy"):
            require_labels(Store(tmp_path / "s"), ["forces"])


class TestRequireElements:
    @pytest.fixture
    def structures(self):
        numbers = ([29, 8], [29, 29], [29, 8, 7], [7])
        return [structure(len(z), seed=k, numbers=np.array(z), source=f"a, frame {k}") for k, z in enumerate(numbers)]

    def test_names_the_first_structure_with_an_unknown_one(self, structures, tmp_path, monkeypatch):
        monkeypatch.setattr("equicat.data.store.SHARD_SIZE", 2)
        write_store(tmp_path / "s", structures, INFO)
        memory = MemoryDataset(structures)
        for dataset, where in (
            (memory, "a, frame 2"),
            (Subset(memory, np.array([1, 3])), "a, frame 3"),
            (Store(tmp_path / "s"), ".*s, structure 2"),
        ):
            require_elements(dataset, [7, 8, 29, 79])
            with pytest.raises(InputError, match=rf"^{where}: element N was not in .*; this model knows O, Cu$"):
                require_elements(dataset, [29, 8])


class TestLabelsOfFiles:
    @pytest.fixture
    def file(self, tmp_path):
        """Three frames: forces under another name, an energy that only two have, and one that is none."""
        frames = [
            (
                f'2\nLattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-{k} {more}\n'
                f"Cu 0 0 0 0 0 {k}\nO 2 0 0 0 0 -{k}\n"
            )
            for k, more in enumerate(("energy=1.0", "energy=2.0", "relaxed_energy=none"))
        ]
        (tmp_path / "a.extxyz").write_text("".join(frames))
        return tmp_path / "a.extxyz"

    def test_under_keys(self, file):
        dataset = open_dataset(file, "REF_energy", forces_key="REF_forces", labels=("energy", "forces"))
        require_labels(dataset, ["energy", "forces"])
        assert dataset.array("energy").tolist() == [0.0, -1.0, -2.0]
        assert dataset.array("forces")[-1].tolist() == [0.0, 0.0, -2.0]
        with pytest.raises(InputError, match=r"a.extxyz, frame 0: no forces key 'f'; .* columns of atoms REF_forces"):
            open_dataset(file, forces_key="f")
        with pytest.raises(InputError, match=r"a.extxyz, frame 2: relaxed_energy is 'none', expected a number"):
            open_dataset(file)

    def test_a_store_has_no_keys(self, store):
        with pytest.raises(InputError, match="forces key applies to structure files only"):
            open_dataset(store.path, forces_key="f")

    def test_what_data_info_says(self, file):
        file.write_text(file.read_text().replace("relaxed_energy=none", "stress=None"))
        text = describe(file)
        assert re.search(r"labels +energy \(2 of 3\)\n", text)
        assert re.search(r"entries +REF_energy stress\n", text)
        assert re.search(r"columns of atoms +REF_forces\n", text)
        text = describe(file, energy_key="REF_energy", forces_key="REF_forces")
        assert re.search(r"labels +energy forces\n", text)
        assert "-2.000 to 0.000 eV" in text
        assert "largest 2.000 eV/Å" in text
        with pytest.raises(InputError, match="structure files only"):
            describe(file.parent, energy_key="REF_energy")


class TestDescribe:
    def test_store(self, tmp_path):
        forces = np.zeros((2, 3))
        forces[1] = [3.0, 0.0, 0.0]  # RMS component sqrt(3); the fixed atom 0 must not count
        forces[0] = 100.0
        write_store(
            tmp_path / "s", [structure(2, forces=forces, energy=-2.5), structure(9, forces=np.zeros((9, 3)))], INFO
        )
        text = describe(tmp_path / "s")
        assert "1 system, 2 structures, 11 atoms" in text
        assert "RMS component 0.577, largest 3.000 eV/Å" in text
        assert "adsorption; references (eV): H -1.2500" in text
        assert "energy forces relaxed_energy relaxed_positions sid fid" in text
        assert "-2.500 to" in text
        assert "18%" in text
        assert "#" in text

    def test_root_lists_every_split_train_first(self, tmp_path):
        for name in ("is2re/val_id", "is2re/train"):
            write_store(tmp_path / "data" / name, STRUCTURES, INFO)
        (tmp_path / "data" / "dataset.json").write_text(json.dumps({"description": "made up"}))
        text = describe(tmp_path / "data")
        assert "made up" in text
        assert text.index("is2re/train:") < text.index("is2re/val_id:")

    def test_file(self, tmp_path):
        write(tmp_path / "a.extxyz", [structure(2, energy=None, forces=None, sid="", source="")])
        text = describe(tmp_path / "a.extxyz")
        assert text.startswith("a: 1 structure, 2 atoms")
        assert "energies are       total" in text

    def test_neighbours_of_a_sample(self, tmp_path):
        cube = np.array([[x, y, z] for x in (0.0, 3.0) for y in (0.0, 3.0) for z in (0.0, 3.0)])
        changes = {"positions": cube, "cell": 6.0 * np.eye(3), "pbc": np.ones(3, bool), "numbers": np.full(8, 29)}
        bare = {"forces": None, "relaxed_positions": None, "fixed": None, "tags": None}
        write_store(tmp_path / "s", [structure(8, **changes, **bare)], INFO)
        # Simple cubic, 3 Å: 6 + 12 + 8 + 6 (at 6 Å, not nearer) neighbours.
        assert "within 6 Å of an atom: 26 to 26, mean 26.0\n" in describe(tmp_path / "s") + "\n"

    def test_neighbours_that_cannot_be_counted(self, tmp_path):
        write_store(tmp_path / "s", [structure(2, positions=np.zeros((2, 3)))], INFO)
        assert re.search(
            r"neighbours +not counted: .*structure 0: atoms 0 and 1 are 0.0000 Å", describe(tmp_path / "s")
        )

    def test_columns_bad_structures_and_checksums(self, tmp_path, monkeypatch):
        monkeypatch.setattr("equicat.data.store.SHARD_SIZE", 2)
        rows = [structure(4, seed=i, info={"anomaly": i % 2}) for i in range(5)]
        write_store(tmp_path / "s", rows, INFO, columns=["anomaly"])
        (tmp_path / "s" / "refused.txt").write_text("a\nb\n")
        text = describe(tmp_path / "s", verify=True)
        assert re.search(r"columns +anomaly\n", text)
        assert re.search(r"anomaly +0: 3, 1: 2\n", text)
        assert re.search(r"left out +2 bad structures, listed in .*refused.txt\n", text)
        assert re.search(r"checksums +all 4 files are as they were written\n", text)
        energies = np.array([s.energy for s in rows])
        assert f"mean {energies.mean():.3f}, standard deviation {energies.std():.3f}" in text
        shard = tmp_path / "s" / "00001.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"~")  # of the last sid: still a text
        with pytest.raises(InputError, match=r"00001.safetensors: damaged"):
            describe(tmp_path / "s", verify=True)

    def test_a_text_that_is_none(self, tmp_path):
        write_store(tmp_path / "s", [structure(4, seed=i) for i in range(3)], INFO)
        shard = tmp_path / "s" / "00000.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
        with pytest.raises(
            InputError, match=r"00000.safetensors: damaged at structure 2; `equicat data info --verify`"
        ):
            Store(tmp_path / "s")[2]

    def test_no_data(self, tmp_path):
        with pytest.raises(InputError, match="found nothing"):
            describe(tmp_path)
