"""OC20's formats as structures: every field as written, and messages that name the file and the frame."""

import json
import lzma
import pickle

import numpy as np
import pytest
from oc20_samples import (
    REFERENCE,
    log_line,
    oc20_like,
    put,
    raw_frame,
    with_relaxed,
    write_aselmdb,
    write_db,
    write_lmdb,
    write_raw,
)
from places import OC20_SAMPLES, needs_oc20_samples

from equicat.data.readers import read
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.oc20.files import grouped, pieces_of
from equicat.sources.oc20.lmdb import count_entries

FRAMES = [oc20_like(seed) for seed in range(13)]
SYSTEMS = [with_relaxed(s) for s in FRAMES]
SINGLE = np.float32(1).dtype


def everything(path, size=5) -> list[Structure]:
    found = [s for piece in pieces_of(path, size) for s in piece.read()]
    bad = [s for s in found if isinstance(s, InputError)]
    assert not bad, bad[0]
    return found


def refused(path) -> list[str]:
    return [str(s) for piece in pieces_of(path, 100) for s in piece.read() if isinstance(s, InputError)]


def assert_same(a: Structure, b: Structure, single: bool = False) -> None:
    """Equal to the last bit, vectors after rounding to single precision if the format does that."""
    for name in ("numbers", "pbc", "fixed", "tags", "sid", "fid", "relaxed_energy"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.energy == pytest.approx(b.energy, abs=1e-12)
    for name in ("positions", "cell", "forces", "relaxed_positions"):
        left, right = getattr(a, name), getattr(b, name)
        if single and right is not None:
            right = right.astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(left, right, err_msg=name)


class TestRaw:
    def test_every_field_and_the_order_of_the_numbers(self, tmp_path):
        frames = FRAMES * 2
        found = everything(write_raw(tmp_path, frames, 2))  # 13 files: 10 comes after 9, not after 1
        assert len(found) == len(frames)
        for written, back in zip(frames, found, strict=True):
            assert_same(back, written)
            assert back.info["reference_energy"] == REFERENCE
            assert back.info["free_energy"] == pytest.approx(written.energy + REFERENCE - 0.001, abs=1e-8)
        assert found[4].where.endswith("2.extxyz.xz, frame 0")

    def test_agrees_with_ase(self, tmp_path):
        write_raw(tmp_path, FRAMES, 20)
        for ours, theirs in zip(everything(tmp_path), read(tmp_path / "0.extxyz.xz"), strict=True):
            for name in ("numbers", "positions", "cell", "pbc", "fixed", "tags", "forces"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
            assert ours.energy == theirs.energy - REFERENCE

    def test_columns_may_come_in_another_order_and_files_uncompressed(self, tmp_path):
        text = (
            "2\n"
            'Properties=tags:I:1:species:S:1:pos:R:3 energy=2.5 pbc="T T F" Lattice="9 0 0 0 8 0 0 0 30"\n'
            "2 O 1 2 3\n0 Cu -4 5e-1 6\n"
        )
        (tmp_path / "0.extxyz").write_text(text)
        (tmp_path / "0.txt").write_text("random7,frame0,0.5\n")
        (structure,) = everything(tmp_path)
        assert structure.numbers.tolist() == [8, 29]
        assert structure.tags.tolist() == [2, 0]
        assert structure.positions[1].tolist() == [-4.0, 0.5, 6.0]
        assert structure.forces is None
        assert not structure.fixed.any()
        assert structure.pbc.tolist() == [True, True, False]
        assert (structure.energy, structure.id) == (2.0, "7_0")

    def test_a_bad_frame_is_named_and_the_others_are_read(self, tmp_path):
        frames = [raw_frame(s) for s in FRAMES[:5]]
        first_force = frames[1].split()[-1]
        frames[1] = frames[1].replace(first_force, "nan")
        frames[2] = frames[2].replace(" T ", " X ", 1) if " T " in frames[2] else frames[2].replace(" F ", " X ", 1)
        frames[3] = frames[3].rsplit(" ", 1)[0] + "\n"
        (tmp_path / "0.extxyz").write_text("".join(frames))
        log = [log_line(s) for s in FRAMES[:5]]
        log[4] = "random12,frame3\n"
        (tmp_path / "0.txt").write_text("".join(log))
        (piece,) = pieces_of(tmp_path, 100)
        found = list(piece.read())
        assert_same(found[0], FRAMES[0])
        messages = [str(error) for error in found[1:]]
        assert "0.extxyz, frame 1: forces is not finite" in messages[0]
        assert "0.extxyz, frame 2: cannot be read ('X' is neither T nor F)" in messages[1]
        assert "0.extxyz, frame 3: cannot be read" in messages[2]
        assert "atom lines, expected 9 in each" in messages[2]
        assert "0.txt, line 4: 'random12,frame3' is not" in messages[3]

    def test_one_frame_fewer_than_the_log(self, tmp_path):
        write_raw(tmp_path, FRAMES, 20)
        text = "".join(raw_frame(s) for s in FRAMES[:-1])
        (tmp_path / "0.extxyz.xz").write_bytes(lzma.compress(text.encode()))
        with pytest.raises(
            InputError, match=r"0.extxyz.xz, frame 12: is not there; .* 12 frames, 0.txt.xz has 13 lines"
        ):
            everything(tmp_path)

    def test_one_frame_more_than_the_log(self, tmp_path):
        write_raw(tmp_path, FRAMES, 20)
        (tmp_path / "0.txt.xz").write_bytes(lzma.compress("".join(map(log_line, FRAMES[:-1])).encode()))
        with pytest.raises(InputError, match=r"0.extxyz.xz, frame 12: 0.txt.xz has no line for it; it has 12"):
            everything(tmp_path)

    def test_broken_off(self, tmp_path):
        text = "".join(raw_frame(s) for s in FRAMES)
        (tmp_path / "0.txt").write_text("".join(map(log_line, FRAMES)))
        (tmp_path / "0.extxyz").write_text(text[: -len(raw_frame(FRAMES[-1]).splitlines()[-1]) - 1])
        with pytest.raises(InputError, match=rf"frame 12: the file ends after {len(FRAMES[-1]) - 1} of"):
            everything(tmp_path)
        (tmp_path / "0.extxyz").write_text("nonsense\n")
        with pytest.raises(InputError, match=r"frame 0: expected a number of atoms, found 'nonsense'"):
            everything(tmp_path)

    def test_truncated_archive(self, tmp_path):
        write_raw(tmp_path, FRAMES, 20)
        data = (tmp_path / "0.extxyz.xz").read_bytes()
        (tmp_path / "0.extxyz.xz").write_bytes(data[:-30])
        with pytest.raises(InputError, match=r"0.extxyz.xz, frame \d+: cannot be read"):
            everything(tmp_path)
        (tmp_path / "0.txt.xz").write_bytes(b"\xfd7zXZ")
        with pytest.raises(InputError, match=r"0.txt.xz: missing or damaged"):
            everything(tmp_path)

    @pytest.mark.parametrize("name", ["1.extxyz.xz", "1.txt.xz"])
    def test_a_missing_file(self, tmp_path, name):
        write_raw(tmp_path, FRAMES, 5)
        (tmp_path / name).unlink()
        with pytest.raises(InputError, match=rf"{name}: is missing .*2.txt.xz is there"):
            pieces_of(tmp_path, 100)

    @needs_oc20_samples
    def test_genuine_files(self):
        found = everything(OC20_SAMPLES / "raw" / "s2ef_train")
        references = json.loads((OC20_SAMPLES / "refs.json").read_text())
        assert len(found) == 200
        ase_frames = [s for n in range(4) for s in read(OC20_SAMPLES / "raw" / "s2ef_train" / f"{n}.extxyz.xz")]
        for ours, theirs in zip(found, ase_frames, strict=True):
            assert ours.info["reference_energy"] == pytest.approx(references[ours.sid]["ref"], abs=1e-9)
            np.testing.assert_array_equal(ours.positions, theirs.positions)
            np.testing.assert_array_equal(ours.forces, theirs.forces)
            np.testing.assert_array_equal(ours.fixed, theirs.fixed)


class TestLmdb:
    @pytest.mark.parametrize("length", [True, False], ids=["length", "no length"])
    @pytest.mark.parametrize("style", ["old", "new"])
    def test_s2ef_of_both_generations(self, tmp_path, style, length):
        write_lmdb(tmp_path / "data.lmdb", FRAMES, style, length)
        found = everything(tmp_path)
        for written, back in zip(FRAMES, found, strict=True):
            assert_same(back, written, single=True)
        assert found[11].where.endswith("data.lmdb, entry 11")  # by number: as text, 11 comes before 2

    @pytest.mark.parametrize("style", ["old", "new"])
    def test_is2re(self, tmp_path, style):
        for written, back in zip(SYSTEMS, everything(write_lmdb(tmp_path / "a.lmdb", SYSTEMS, style)), strict=True):
            assert_same(back, written, single=True)
            assert back.id == written.sid

    def test_directory_of_shards(self, tmp_path):
        for k, part in enumerate((FRAMES[:4], FRAMES[4:10], FRAMES[10:])):
            write_lmdb(tmp_path / f"data.{k:04d}.lmdb", part)
        pieces = pieces_of(tmp_path, 3)
        assert [(p.path.name[5:9], p.start, p.count) for p in pieces] == [
            ("0000", 0, 3),
            ("0000", 3, 1),
            ("0001", 0, 3),
            ("0001", 3, 3),
            ("0002", 0, 3),
        ]
        assert [len(group) for group in grouped(pieces, 7)] == [3, 2]
        assert [s.id for s in everything(tmp_path)] == [s.id for s in FRAMES]

    def test_files_without_labels(self, tmp_path):
        bare = [Structure(**{**vars(s), "energy": None, "forces": None}) for s in FRAMES]
        for style in ("old", "new"):
            found = everything(write_lmdb(tmp_path / f"{style}.lmdb", bare, style))
            assert {(s.energy, s.forces) for s in found} == {(None, None)}
            assert [s.id for s in found] == [s.id for s in bare]

    def test_a_missing_shard(self, tmp_path):
        for k in (0, 2):
            write_lmdb(tmp_path / f"data.{k:04d}.lmdb", FRAMES)
        with pytest.raises(InputError, match=r"data.0001.lmdb: is missing, while number 2 is there"):
            pieces_of(tmp_path, 100)

    def test_truncated(self, tmp_path):
        path = write_lmdb(tmp_path / "data.lmdb", FRAMES * 3)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match=r"data.lmdb: truncated, [\d,]+ of [\d,]+ bytes"):
            count_entries(path)
        path.write_bytes(data[:3000])
        with pytest.raises(InputError, match=r"data.lmdb: cannot be opened as an LMDB"):
            count_entries(path)
        path.write_bytes(data)
        assert count_entries(path) == 39

    @pytest.mark.parametrize("length", [-1, "3", None])
    def test_impossible_length(self, tmp_path, length):
        put(tmp_path / "data.lmdb", {b"length": pickle.dumps(length)})
        with pytest.raises(InputError, match=rf"its key 'length' holds {length!r}, not a number of entries"):
            pieces_of(tmp_path, 100)

    def test_fewer_entries_than_it_says(self, tmp_path):
        path = write_lmdb(tmp_path / "data.lmdb", FRAMES[:2])
        put(path, {b"length": pickle.dumps(3)})
        with pytest.raises(InputError, match=r"data.lmdb, entry 2: is missing; the file has 3 keys"):
            everything(path)

    def test_a_pickle_that_runs_commands(self, tmp_path):
        class Evil:
            def __reduce__(self):
                import os

                return os.system, (f"touch {tmp_path / 'ran'}",)

        path = write_lmdb(tmp_path / "data.lmdb", FRAMES[:3])
        put(path, {b"1": pickle.dumps(Evil())})
        with pytest.raises(InputError, match=r"data.lmdb, entry 1: the pickle asks for posix.system"):
            everything(path)
        assert not (tmp_path / "ran").exists()

    def test_bad_entries_are_named(self, tmp_path):
        nan = FRAMES[1].forces.copy()
        nan[0, 1] = np.nan
        values = vars(FRAMES[1]) | {"forces": nan}
        bad = object.__new__(Structure)
        bad.__dict__.update(values)
        write_lmdb(tmp_path / "data.lmdb", [FRAMES[0], bad, FRAMES[2]])
        (message,) = refused(tmp_path)
        assert "data.lmdb, entry 1: forces is not finite" in message

    def test_not_oc20(self, tmp_path):
        from oc20_samples import torch_geometric

        with torch_geometric("new") as make:
            put(tmp_path / "data.lmdb", {b"0": pickle.dumps(make(x=1, z=2))})
        assert "entry 0: not an OC20 structure (no 'atomic_numbers'); found x, z" in refused(tmp_path)[0]

    @needs_oc20_samples
    def test_genuine_files_of_both_generations_agree(self):
        old, new = (everything(OC20_SAMPLES / f"is2re_lmdb_{year}") for year in (2020, 2025))
        assert len(old) == len(new) == 32
        for a, b in zip(old, new, strict=True):
            for name in ("numbers", "cell", "fixed", "tags", "sid", "fid", "energy", "relaxed_energy", "forces"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
            for name in ("positions", "relaxed_positions"):  # the newer writer wraps them into the cell
                jump = np.linalg.solve(a.cell.T, (getattr(a, name) - getattr(b, name)).T)
                np.testing.assert_allclose(jump, np.round(jump), atol=1e-5)


class TestAseDatabases:
    def test_aselmdb(self, tmp_path):
        for written, back in zip(FRAMES, everything(write_aselmdb(tmp_path / "a.aselmdb", FRAMES)), strict=True):
            assert_same(back, written)
            assert back.info["reference_energy"] == REFERENCE

    def test_aselmdb_is2re(self, tmp_path):
        write_aselmdb(tmp_path / "data.0000.aselmdb", SYSTEMS[:6])
        write_aselmdb(tmp_path / "data.0001.aselmdb", SYSTEMS[6:])
        for written, back in zip(SYSTEMS, everything(tmp_path), strict=True):
            assert_same(back, written)

    def test_deleted_rows(self, tmp_path):
        path = write_aselmdb(tmp_path / "a.aselmdb", FRAMES, deleted=[2, 7])
        assert [s.id for s in everything(path)] == [s.id for i, s in enumerate(FRAMES, 1) if i not in (2, 7)]

    def test_db(self, tmp_path):
        for written, back in zip(FRAMES, everything(write_db(tmp_path / "a.db", FRAMES)), strict=True):
            assert_same(back, written)

    def test_damage(self, tmp_path):
        path = write_aselmdb(tmp_path / "a.aselmdb", FRAMES)
        put(path, {b"3": b"not compressed"})
        with pytest.raises(InputError, match=r"a.aselmdb, row 3: damaged"):
            everything(path)
        put(tmp_path / "b.aselmdb", {b"1": b""})
        with pytest.raises(InputError, match=r"b.aselmdb: no key 'nextid'"):
            pieces_of(tmp_path / "b.aselmdb", 5)
        (tmp_path / "c.db").write_text("nothing")
        with pytest.raises(InputError, match=r"c.db: cannot be read as an ASE database"):
            pieces_of(tmp_path / "c.db", 5)


def test_nothing_of_oc20(tmp_path):
    with pytest.raises(InputError, match="no OC20 files"):
        pieces_of(tmp_path, 5)
    with pytest.raises(InputError, match="no OC20 files"):
        pieces_of(tmp_path / "none.lmdb", 5)
    write_raw(tmp_path, FRAMES, 5)
    write_lmdb(tmp_path / "data.lmdb", FRAMES)
    with pytest.raises(InputError, match=r"holds raw files .* and databases"):
        pieces_of(tmp_path, 5)
