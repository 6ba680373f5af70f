"""Packed into stores: everything arrives once, bad frames are listed, and a kill at any moment changes nothing."""

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kills
import numpy as np
import pytest
from oc20_samples import REFERENCE, oc20_like, raw_frame, with_relaxed, write_aselmdb, write_lmdb, write_raw
from places import OC20_SAMPLES, needs_oc20_samples

from equicat.data.info import DatasetInfo
from equicat.data.neighbors import neighbor_list
from equicat.data.readers import read, write
from equicat.data.store import Store
from equicat.errors import InputError
from equicat.sources.oc20.files import grouped, pieces_of
from equicat.sources.oc20.mapping import read_mapping
from equicat.sources.packing import PackOptions, pack

INFO = DatasetInfo("adsorption", provenance={"dataset": "OC20"})
FRAMES = [oc20_like(seed) for seed in range(40)]
QUIET = PackOptions(progress=False, columns=("reference_energy", "free_energy"))
PLAIN = PackOptions(progress=False)


def shards_of(path: Path, size: int = 10):
    return grouped(pieces_of(path, size), size)


def bytes_of(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.iterdir())}


@pytest.fixture
def raw(tmp_path) -> Path:
    return write_raw(tmp_path / "raw", FRAMES, 4)


class TestRoundTrips:
    def test_raw_to_store_to_extxyz_equals_the_input_to_its_digits(self, raw, tmp_path):
        result = pack(tmp_path / "out", shards_of(raw), INFO, QUIET)
        assert (result.n_structures, result.refused) == (40, [])
        store = Store(tmp_path / "out")
        assert [shard["n_structures"] for shard in store.shards] == [8, 8, 8, 8, 8]
        write(tmp_path / "back.extxyz", store)
        inputs = [s for n in range(10) for s in read(raw / f"{n}.extxyz.xz")]
        for written, back in zip(inputs, read(tmp_path / "back.extxyz"), strict=True):
            for name in ("numbers", "pbc", "fixed", "tags"):
                np.testing.assert_array_equal(getattr(written, name), getattr(back, name), err_msg=name)
            for name in ("positions", "forces", "cell"):
                np.testing.assert_allclose(getattr(written, name), getattr(back, name), rtol=0, atol=5e-9)
            assert f"{back.energy + back.info['reference_energy']:.8f}" == f"{written.energy:.8f}"
            assert back.info["reference_energy"] == REFERENCE
        assert [s.id for s in store] == [s.id for s in FRAMES]
        free = re.findall(r"free_energy=(\S+)", (tmp_path / "back.extxyz").read_text())  # ASE takes it for a result
        assert free == [f"{s.energy + REFERENCE - 0.001:.8f}".rstrip("0") for s in FRAMES]

    def test_single_precision_rounds_once(self, raw, tmp_path):
        pack(tmp_path / "out", shards_of(raw), INFO, PackOptions("float32", progress=False))
        store = Store(tmp_path / "out")
        assert store.array("positions").dtype == np.float32
        expected = np.concatenate([s.positions for s in FRAMES]).astype(np.float32)
        np.testing.assert_array_equal(store.array("positions"), expected)

    @pytest.mark.parametrize("style", ["old", "new"])
    def test_lmdb_every_field_equal(self, tmp_path, style):
        systems = [with_relaxed(s) for s in FRAMES]
        write_lmdb(tmp_path / "in" / "data.lmdb", systems, style, length=style == "new")
        pack(tmp_path / "out", shards_of(tmp_path / "in", 7), INFO, PackOptions("float32", progress=False))
        store = Store(tmp_path / "out")
        assert len(store) == len(systems)
        pieces = [s for p in pieces_of(tmp_path / "in", 7) for s in p.read()]
        for i, written in enumerate(systems):
            for name in ("numbers", "pbc", "fixed", "tags", "sid", "fid", "energy", "relaxed_energy"):
                np.testing.assert_array_equal(getattr(store[i], name), getattr(written, name), err_msg=name)
            for name in ("positions", "cell", "forces", "relaxed_positions"):
                np.testing.assert_array_equal(getattr(store[i], name), getattr(pieces[i], name), err_msg=name)

    def test_aselmdb(self, tmp_path):
        write_aselmdb(tmp_path / "a.aselmdb", FRAMES)
        pack(tmp_path / "out", shards_of(tmp_path / "a.aselmdb"), INFO, PLAIN)
        store = Store(tmp_path / "out")
        np.testing.assert_array_equal(store.array("forces"), np.concatenate([s.forces for s in FRAMES]))

    @needs_oc20_samples
    def test_genuine_files(self, tmp_path):
        counts = {"raw/s2ef_train": 200, "is2re_lmdb_2020": 32, "is2re_lmdb_2025": 32}
        for name, count in counts.items():
            out = tmp_path / name.replace("/", "_")
            assert pack(out, shards_of(OC20_SAMPLES / name), INFO, PLAIN).n_structures == count
            assert list(Store(out).verify())


class TestDeterminism:
    def test_same_bytes_whatever_the_number_of_workers(self, raw, tmp_path):
        for workers in (1, 2):
            options = PackOptions(progress=False, workers=workers)
            pack(tmp_path / f"out{workers}", shards_of(raw), INFO, options)
        assert bytes_of(tmp_path / "out1") == bytes_of(tmp_path / "out2")

    def test_goes_on_where_it_was(self, raw, tmp_path):
        pack(tmp_path / "whole", shards_of(raw), INFO, PLAIN)
        shards = shards_of(raw)
        good = (raw / "9.txt.xz").read_bytes()
        (raw / "9.txt.xz").write_bytes(bytes(len(good)))
        with pytest.raises(InputError, match=r"9.txt.xz: missing or damaged"):
            pack(tmp_path / "out", shards, INFO, PLAIN)
        (raw / "9.txt.xz").write_bytes(good)
        assert not (tmp_path / "out").exists()
        kept = tmp_path / ".out.partial" / "store" / "00000.safetensors"
        stamp = kept.stat().st_mtime_ns
        pack(tmp_path / "out", shards, INFO, PLAIN)
        assert (tmp_path / "out" / kept.name).stat().st_mtime_ns == stamp, "not written again"
        assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
        assert not (tmp_path / ".out.partial").exists()

    def test_other_input_or_options_are_not_mixed(self, raw, tmp_path):
        shards = shards_of(raw)
        (raw / "9.extxyz.xz").write_bytes(b"")
        with pytest.raises(InputError, match=r"9.extxyz.xz, frame 0"):
            pack(tmp_path / "out", shards, INFO, PLAIN)
        with pytest.raises(InputError, match=r"interrupted conversion with other input or options; repeat that one"):
            pack(tmp_path / "out", shards, INFO, PackOptions("float32", progress=False))

    def test_only_one_process_at_a_time(self, raw, tmp_path):
        import fcntl

        (tmp_path / ".out.partial").mkdir()
        with (tmp_path / ".out.partial" / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(InputError, match="another process is converting"):
                pack(tmp_path / "out", shards_of(raw), INFO, PLAIN)

    def test_existing_target(self, raw, tmp_path):
        (tmp_path / "out").mkdir()
        with pytest.raises(InputError, match="exists already"):
            pack(tmp_path / "out", shards_of(raw), INFO, PLAIN)


SCRIPT = """
import sys
from pathlib import Path
from equicat.data.info import DatasetInfo
from equicat.sources.oc20.files import grouped, pieces_of
from equicat.sources.packing import PackOptions, pack
raw, out = Path(sys.argv[1]), Path(sys.argv[2])
if __name__ == "__main__":
    print("started", flush=True)
    options = PackOptions(progress=False, workers=int(sys.argv[3]), columns=("reference_energy",))
    pack(out, grouped(pieces_of(raw, 20), 20), DatasetInfo("adsorption"), options)
"""


def run_script(folder: Path, raw: Path, out: Path, workers: int) -> subprocess.Popen:
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "script.py"), str(raw), str(out), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


@pytest.mark.parametrize("later", [PLAIN, PackOptions("float32", progress=False)], ids=["same", "other"])
def test_a_kill_at_any_change_of_a_file_changes_no_byte(tmp_path, later):
    """Where only the notes of a finished store are left, they are not trusted, whatever the options are then."""
    raw, out = write_raw(tmp_path / "raw", FRAMES[:6], 3), tmp_path / "out"

    def packed(name: str, options: PackOptions) -> dict[str, bytes]:
        pack(tmp_path / name, shards_of(raw, 3), INFO, options)
        return bytes_of(tmp_path / name)

    whole, whole_later, was_there = packed("whole", PLAIN), packed("later", later), []
    for _ in kills.at_every_change(lambda: packed("out", PLAIN)):
        was_there.append(out.exists())
        if was_there[-1]:
            assert bytes_of(out) == whole
            shutil.rmtree(out)
            assert packed("out", later) == whole_later
        else:
            assert packed("out", PLAIN) == whole
        assert {path.name for path in tmp_path.iterdir()} == {"raw", "whole", "later", "out"}
        shutil.rmtree(out)
    assert (was_there[0], was_there[-1]) == (False, True)
    assert len(was_there) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "n_kills"), [(1, 3), (2, 10)])
def test_kill_9_at_random_moments_changes_no_byte(tmp_path, workers, n_kills):
    raw = write_raw(tmp_path / "raw", [oc20_like(seed, 60) for seed in range(300)], 10)
    process = run_script(tmp_path, raw, tmp_path / "whole", workers)
    process.stdout.readline()
    started = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - started
    rng = random.Random(5)
    killed = 0
    for _ in range(20 * n_kills):
        process = run_script(tmp_path, raw, tmp_path / "out", workers)
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 2.5 * seconds / n_kills))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
            assert not (tmp_path / "out").exists() or bytes_of(tmp_path / "out")
        process.wait()
        if (tmp_path / "out").exists() and killed < n_kills:  # faster than the dice: once more from the start
            assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
            for file in (tmp_path / "out").iterdir():
                file.unlink()
            (tmp_path / "out").rmdir()
        if killed == n_kills:
            break
    assert killed == n_kills
    if not (tmp_path / "out").exists():
        assert run_script(tmp_path, raw, tmp_path / "out", workers).wait() == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_workers_end_with_their_parent(tmp_path):
    raw = write_raw(tmp_path / "raw", [oc20_like(seed, 60) for seed in range(400)], 10)
    process = run_script(tmp_path, raw, tmp_path / "out", 2)
    deadline = time.monotonic() + 60
    while not list((tmp_path / ".out.partial").glob("0*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.is_file():
        process.kill()
        pytest.skip("this system does not list the children of a process")
    pids = [int(pid) for pid in children.read_text().split()]
    assert len(pids) >= 2
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}/stat").is_file() and " Z " not in stat_of(pid) for pid in pids):
        assert time.monotonic() < deadline, "still running"
        time.sleep(0.05)


def stat_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return " Z "


class TestBadFrames:
    @pytest.fixture
    def damaged(self, raw) -> Path:
        """NaN forces in frame 2 of file 1, an unknown element in frame 0 of file 3."""
        (raw / "1.extxyz.xz").unlink()
        (raw / "3.extxyz.xz").unlink()
        nan = [raw_frame(s) for s in FRAMES[4:8]]
        nan[2] = nan[2].rstrip().rpartition(" ")[0] + " nan\n"
        (raw / "1.extxyz").write_text("".join(nan))
        element = [raw_frame(s) for s in FRAMES[12:16]]
        lines = element[0].splitlines()
        lines[2] = "Qq" + lines[2][2:]
        element[0] = "\n".join(lines) + "\n"
        (raw / "3.extxyz").write_text("".join(element))
        return raw

    def test_are_counted_and_listed(self, damaged, tmp_path):
        result = pack(tmp_path / "out", shards_of(damaged), INFO, PLAIN)
        assert result.n_structures == 38
        assert "1.extxyz, frame 2: forces is not finite (NaN or infinity)" in result.refused[0]
        assert "3.extxyz, frame 0: cannot be read (no 'Qq')" in result.refused[1]
        assert (tmp_path / "out" / "refused.txt").read_text().splitlines() == result.refused
        kept = [s.id for i, s in enumerate(FRAMES) if i not in (6, 12)]
        assert [s.id for s in Store(tmp_path / "out")] == kept

    @pytest.mark.parametrize("workers", [1, 2])
    def test_strict_stops_at_the_first(self, damaged, tmp_path, workers):
        options = PackOptions(strict=True, progress=False, workers=workers)
        with pytest.raises(InputError, match=r"extxyz, frame \d: .*strict"):
            pack(tmp_path / "out", shards_of(damaged), INFO, options)
        assert not (tmp_path / "out").exists()

    def test_a_label_that_others_have(self, tmp_path):
        bare = [vars(s) | {"forces": None} for s in FRAMES[:3]]
        structures = [FRAMES[3], type(FRAMES[0])(**bare[0]), FRAMES[4]]
        write_lmdb(tmp_path / "data.lmdb", structures)
        result = pack(tmp_path / "out", shards_of(tmp_path / "data.lmdb"), INFO, PLAIN)
        assert result.n_structures == 2
        assert "data.lmdb, entry 1: no forces, which earlier frames have; found energy" in result.refused[0]

    def test_nothing_good(self, tmp_path):
        bad = object.__new__(type(FRAMES[0]))
        bad.__dict__.update(vars(FRAMES[0]) | {"energy": float("nan")})
        write_lmdb(tmp_path / "data.lmdb", [bad])
        with pytest.raises(InputError, match=r"none of 1 .* the first: .*data.lmdb, entry 0: energy is not finite"):
            pack(tmp_path / "out", shards_of(tmp_path / "data.lmdb"), INFO, PLAIN)

    def test_a_shard_without_good_frames(self, tmp_path):
        frames = [vars(s) | {"energy": float("nan")} if 4 <= i < 8 else vars(s) for i, s in enumerate(FRAMES[:12])]
        structures = [type(FRAMES[0]).unchecked(**values) for values in frames]
        write_lmdb(tmp_path / "data.lmdb", structures)
        result = pack(tmp_path / "out", grouped(pieces_of(tmp_path / "data.lmdb", 4), 4), INFO, PLAIN)
        assert (result.n_structures, len(result.refused)) == (8, 4)
        assert [s.id for s in Store(tmp_path / "out")] == [s.id for s in FRAMES[:4] + FRAMES[8:12]]


def test_place_that_cannot_be_written(raw, tmp_path):
    if os.geteuid() == 0:
        out = Path("/sys/equicat/out")  # root may write everywhere else
    else:
        (tmp_path / "closed").mkdir(mode=0o555)
        out = tmp_path / "closed" / "out"
    with pytest.raises(InputError, match=r"partial: cannot be written .*choose another place"):
        pack(out, shards_of(raw), INFO, PLAIN)


class TestColumns:
    def test_mapping_is_joined(self, raw, tmp_path):
        rows = {
            f"random{1000000 + k}": {
                "bulk_mpid": f"mp-{k}",
                "bulk_symbols": "Cu2O",
                "ads_symbols": "*N2",
                "miller_index": (2, 0, -1),
                "shift": 0.125 * k,
                "top": k % 2 == 0,
                "adsorption_site": ((np.float64(1.0),) * 3,),
                "class": 1,
                "anomaly": k % 5,
            }
            for k in range(12)  # frames are of 14 systems
        }
        (tmp_path / "map.pkl").write_bytes(pickle.dumps(rows, 4))
        table = read_mapping(tmp_path / "map.pkl")
        result = pack(tmp_path / "out", shards_of(raw), INFO, QUIET, table)
        assert result.n_unmapped == 4
        store = Store(tmp_path / "out")
        assert store[7].info["bulk_mpid"] == "mp-2"
        assert store[7].info["miller_index"] == "2 0 -1"
        assert store[7].info["shift"] == 0.25
        assert store[7].info["top"] is True
        assert store.array("anomaly").tolist() == [k % 5 if k < 12 else -1 for k in (i // 3 for i in range(40))]
        assert store[39].info["bulk_symbols"] == ""
        assert store[39].info["reference_energy"] == REFERENCE
        index = json.loads((tmp_path / "out" / "index.json").read_text())
        assert index["columns"][:2] == ["reference_energy", "free_energy"]

    def test_earlier_version_of_the_mapping(self, tmp_path):
        (tmp_path / "map.pkl").write_bytes(pickle.dumps({"random5": {"bulk_mpid": "mp-1", "ads_symbols": "*H"}}))
        table = read_mapping(tmp_path / "map.pkl")
        assert table.columns == ["bulk_mpid", "ads_symbols"]
        assert table.row("5") == {"bulk_mpid": "mp-1", "ads_symbols": "*H"}
        assert "6" not in table
        assert "s6" not in table

    def test_edges_are_counted(self, raw, tmp_path):
        options = PackOptions(progress=False, edges_within=4.0)
        pack(tmp_path / "out", shards_of(raw), INFO, options)
        expected = [neighbor_list(s, 4.0)[0].shape[1] for s in FRAMES]
        assert Store(tmp_path / "out").array("n_edges").tolist() == expected
