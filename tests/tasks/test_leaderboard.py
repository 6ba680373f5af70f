"""Leaderboard files: keys, dtypes, shapes and order as OC20's own programs write them; a checker that finds slips."""

import numpy as np
import pytest

from equicat.cli.main import main
from equicat.errors import InputError
from equicat.tasks.leaderboard import (
    LEADERBOARD_SPLITS,
    check_submission,
    is2re_arrays,
    is2rs_arrays,
    s2ef_arrays,
    write_submission,
)

IDS = np.array(["1111254_5", "1111254_13", "99_0"])
N_ATOMS = np.array([2, 3, 1])
FIXED = np.array([True, False, False, True, False, False])
FORCES = np.arange(18.0).reshape(6, 3)
ENERGY = np.array([-0.5, 1.25, 3.1])


def s2ef(**changes):
    return s2ef_arrays(IDS, ENERGY, FORCES, N_ATOMS, FIXED, **changes)


class TestArrays:
    def test_s2ef_of_free_atoms(self):
        arrays = s2ef()
        assert arrays["ids"].tolist() == ["1111254_13", "1111254_5", "99_0"], "order of texts"
        assert arrays["energy"].dtype == arrays["forces"].dtype == np.float16
        assert arrays["energy"].shape == (3, 1)
        assert arrays["chunk_idx"].dtype == np.int64
        parts = np.split(arrays["forces"], arrays["chunk_idx"])
        for part, rows in zip(parts, ([2, 4], [1], [5]), strict=True):
            np.testing.assert_array_equal(part, FORCES[rows])
        assert arrays["energy"][:, 0].tolist() == np.array([1.25, -0.5, 3.1], np.float16).tolist()

    def test_s2ef_of_all_atoms(self):
        arrays = s2ef(atoms="all", dtype="float32")
        parts = np.split(arrays["forces"], arrays["chunk_idx"])
        assert [len(part) for part in parts] == [3, 2, 1]
        np.testing.assert_array_equal(parts[1], FORCES[:2])
        assert arrays["forces"].dtype == np.float32

    def test_is2rs(self):
        arrays = is2rs_arrays(np.array(["12", "7", "100"]), FORCES, N_ATOMS)
        assert arrays["ids"].tolist() == ["100", "12", "7"]
        assert arrays["pos"].dtype == np.float64
        parts = np.split(arrays["pos"], arrays["chunk_idx"])
        for part, rows in zip(parts, ([5], [0, 1], [2, 3, 4]), strict=True):
            np.testing.assert_array_equal(part, FORCES[rows])

    def test_is2rs_is_recognized(self, tmp_path):
        write_submission(tmp_path / "x.npz", {"": is2rs_arrays(np.array(["12", "7", "100"]), FORCES, N_ATOMS)})
        assert "one split: IS2RS, 3 systems, positions of 6 atoms, float64" in check_submission(tmp_path / "x.npz")

    def test_is2re(self):
        arrays = is2re_arrays(np.array(["20", "3", "100"]), ENERGY)
        assert list(arrays) == ["ids", "energy"]
        assert arrays["ids"].tolist() == ["100", "20", "3"]
        assert arrays["energy"].tolist() == np.array([[3.1], [-0.5], [1.25]], np.float16).tolist()

    def test_refusals(self):
        for ids in (np.array(["1", "1", "2"]), np.array(["1", "", "2"])):
            with pytest.raises(InputError, match="a different id for every structure"):
                is2re_arrays(ids, ENERGY)
        with pytest.raises(InputError, match="energy is not finite in row 1"):
            is2re_arrays(np.array(["1", "2", "3"]), np.array([0.0, np.nan, 1.0]))
        with pytest.raises(InputError, match="energy as float16 is not finite in row 0"):
            is2re_arrays(np.array(["1", "2", "3"]), np.array([1e5, 0.0, 1.0]))
        with pytest.raises(InputError, match="'fixed'; it must be one of free, all"):
            s2ef(atoms="fixed")
        with pytest.raises(InputError, match="int8"):
            s2ef(dtype="int8")


def saved(path, arrays):
    np.savez_compressed(path, **arrays)
    return path


class TestChecker:
    def test_good_files(self, tmp_path, capsys):
        write_submission(tmp_path / "a.npz", {"": s2ef()})
        assert "one split: S2EF, 3 structures, forces of 4 atoms, float16" in check_submission(tmp_path / "a.npz")
        systems = is2re_arrays(np.array(["20", "3", "100"]), ENERGY)
        write_submission(tmp_path / "b.npz", dict.fromkeys(LEADERBOARD_SPLITS, systems))
        text = check_submission(tmp_path / "b.npz")
        assert [line.split(":")[0].strip() for line in text.splitlines()[1:]] == list(LEADERBOARD_SPLITS)
        assert "ood_both: IS2RE, 3 systems, float16" in text
        with np.load(tmp_path / "b.npz") as file:
            assert sorted(file.files) == sorted(f"{s}_{key}" for s in LEADERBOARD_SPLITS for key in ("ids", "energy"))
        assert main(["data", "info", str(tmp_path / "b.npz")]) == 0
        assert "ood_cat: IS2RE" in capsys.readouterr().out

    def test_writer_refuses_some_splits(self, tmp_path):
        with pytest.raises(InputError, match=r"one split or all of id, ood_ads, ood_cat, ood_both; got id"):
            write_submission(tmp_path / "a.npz", {"id": s2ef()})
        with pytest.raises(InputError, match=r"is an .npz file"):
            write_submission(tmp_path / "a.txt", {"": s2ef()})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"energy": None}, "energy is missing, which S2EF needs; found ids, forces, chunk_idx"),
            ({"chunk_idx": None}, "chunk_idx is missing, which S2EF needs"),
            ({"ids": np.array([1, 2, 3])}, r"ids must be texts \[n\], found int64 \[3\]"),
            ({"ids": np.array(["1_5", "1_13", "2_0"])}, r"ids: '1_13' is out of order \(row 1\)"),
            ({"ids": np.array(["1_1", "1_1", "2_0"])}, r"ids: '1_1' is repeated"),
            ({"ids": np.array(["1", "2", "3"])}, r"'1' is not <sid>_<fid> in digits"),
            ({"energy": np.zeros(2, np.float16)}, r"energy must be real \[3\] or \[3, 1\], found float16 \[2\]"),
            ({"energy": np.array([0.0, np.inf, 0.0])}, "energy is not finite in row 1"),
            ({"forces": np.zeros((4, 2))}, r"forces must be real \[atoms, 3\], found float64 \[4, 2\]"),
            ({"forces": np.full((4, 3), np.nan)}, "forces is not finite in row 0"),
            ({"chunk_idx": np.array([2, 3, 4])}, r"chunk_idx must be integers \[2\], found int64 \[3\]"),
            ({"chunk_idx": np.array([3, 2])}, "chunk_idx must ascend from 0 to at most 4"),
            ({"chunk_idx": np.array([3, 9])}, "chunk_idx must ascend from 0 to at most 4"),
            ({"stress": np.zeros(3)}, "has stress, which the leaderboard does not know"),
        ],
    )
    def test_slips(self, tmp_path, changes, message):
        arrays = {k: v for k, v in (s2ef() | changes).items() if v is not None}
        with pytest.raises(InputError, match=message):
            check_submission(saved(tmp_path / "a.npz", arrays))

    def test_incomplete_and_mixed_submissions(self, tmp_path):
        three = {f"{split}_{k}": v for split in LEADERBOARD_SPLITS[:3] for k, v in s2ef().items()}
        with pytest.raises(InputError, match=r"ood_both_ids is missing; found nothing"):
            check_submission(saved(tmp_path / "a.npz", three))
        other = {f"ood_both_{k}": v for k, v in is2re_arrays(np.array(["1", "2", "3"]), ENERGY).items()}
        with pytest.raises(InputError, match="splits of two tasks"):
            check_submission(saved(tmp_path / "b.npz", three | other))

    def test_pickles_are_not_read(self, tmp_path):
        with pytest.raises(InputError, match="without pickles"):
            check_submission(saved(tmp_path / "a.npz", s2ef() | {"ids": np.array([{}], dtype=object)}))
        (tmp_path / "b.npz").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"b.npz: cannot be read"):
            check_submission(tmp_path / "b.npz")
        with pytest.raises(InputError, match=r"c.npz: cannot be read"):
            check_submission(tmp_path / "c.npz")
