"""`equicat data oc20` from end to end: a small OC20 as published, on a disk and on a server that misbehaves."""

import dataclasses
import hashlib
import pickle
import re
import resource
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from oc20_samples import oc20_like, with_relaxed, write_lmdb, write_raw

from equicat.cli.main import main
from equicat.data.directory import splits_of
from equicat.data.store import Store
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.sources.describe import describe
from equicat.sources.oc20 import catalogue as oc20_catalogue
from equicat.sources.oc20.catalogue import PUBLISHED_SPLITS, splits_named
from equicat.sources.oc20.download import download, require_space, unpack

FRAMES = [oc20_like(seed) for seed in range(30)]
SYSTEMS = [with_relaxed(s) for s in FRAMES]
BARE = [Structure(**{**vars(s), "energy": None, "forces": None}) for s in FRAMES]
IS2RE_PARTS = {"10k/train": 10, "100k/train": 20, "all/train": 30}
IS2RE_PARTS |= {
    f"all/{kind}_{which}": 6 for kind in ("val", "test") for which in ("id", "ood_ads", "ood_cat", "ood_both")
}


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, bytes]:
    """The archives of OC20, small, with the folders, README files and locks of the real ones."""
    root = tmp_path_factory.mktemp("published")
    folders = {}
    for name in ("train_200K", "val_id", "val_ood_ads", "val_ood_cat", "val_ood_both", "rattled", "md"):
        top = root / f"s2ef_{name}"
        write_raw(top / f"s2ef_{name}", FRAMES[: 12 if name.startswith("val") else 30], 5)
        (top / f"README_s2ef_{name}.md").write_text("5000 structures a file")
        folders[f"s2ef_{name}.tar"] = top
    for which in ("id", "ood_ads", "ood_cat", "ood_both"):
        top = root / "s2ef_test_lmdbs"
        for k in (0, 1):
            write_lmdb(top / "test_data" / "s2ef" / "all" / f"test_{which}" / f"data.{k:04d}.lmdb", BARE[k::2], "old")
    folders["s2ef_test_lmdbs.tar.gz"] = top
    top = root / "is2res_train_val_test_lmdbs"
    for part, n in IS2RE_PARTS.items():
        systems = [
            Structure(**{**vars(s), "energy": None, "relaxed_energy": None, "relaxed_positions": None}) for s in BARE
        ]
        write_lmdb(
            top / "data" / "is2re" / part / "data.lmdb", (systems if "test" in part else SYSTEMS)[:n], "old", False
        )
    folders["is2res_train_val_test_lmdbs.tar.gz"] = top
    packed = {}
    for name, folder in folders.items():
        with tarfile.open(root / name, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(folder, folder.name)
        packed[name] = (root / name).read_bytes()
    rows = {f"random{s.sid}": {"bulk_mpid": f"mp-{s.sid}", "ads_symbols": "*O", "anomaly": 0} for s in FRAMES}
    packed["oc20_data_mapping.pkl"] = pickle.dumps(rows, 4)
    return packed


@dataclasses.dataclass
class Server:
    """A local server: the files that it serves, how it fails, and what it was asked."""

    files: dict[str, bytes]
    url: str = ""
    break_after: int | None = None
    """Close each connection after so many bytes of the answer."""
    n_breaks: int = 1_000_000
    """Close that many connections, then no more."""
    ranges: bool = True
    status: int = 0
    """Answer every request with this error."""
    requests: list[tuple[str, str | None]] = dataclasses.field(default_factory=list)


@pytest.fixture
def server(archives) -> Iterator[Server]:
    state = Server(dict(archives))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            state.requests.append((name, wanted))
            if state.status or name not in state.files:
                self.send_error(state.status or 404)
                return
            data, start = state.files[name], 0
            if wanted and state.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                if start >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(data)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            body = data[start:]
            if state.break_after is not None and state.n_breaks > 0:
                state.n_breaks -= 1
                body = body[: state.break_after]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def published(archives, monkeypatch) -> None:
    """The catalogue with the checksums and sizes of the small archives; retries do not wait."""
    for task, splits in PUBLISHED_SPLITS.items():
        for name, split in splits.items():
            if split.archive.name in archives:
                data = archives[split.archive.name]
                archive = dataclasses.replace(split.archive, md5=hashlib.md5(data).hexdigest(), size=float(len(data)))
                monkeypatch.setitem(
                    PUBLISHED_SPLITS[task], name, dataclasses.replace(split, archive=archive, n_structures=30)
                )
    monkeypatch.setattr("equicat.sources.oc20.download.RETRY_PAUSE", 0.0)
    monkeypatch.setattr("equicat.sources.oc20.download.BLOCK", 1000)


def run(capsys, out: Path, *arguments: object) -> tuple[str, str]:
    """Output and the one line of an error."""
    words = ["data", "oc20", out, *arguments, "--workers", "1", "--progress", "false"]
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert status == (2 if captured.err else 0)
    return captured.out, captured.err


class TestCatalogue:
    def test_splits_of_the_page(self):
        assert list(PUBLISHED_SPLITS["s2ef"])[:4] == ["200k", "2M", "20M", "all"]
        assert len(PUBLISHED_SPLITS["s2ef"]) == 4 + 4 + 4 + 2
        assert len(PUBLISHED_SPLITS["is2re"]) == 3 + 4 + 4
        archives = {s.archive for splits in PUBLISHED_SPLITS.values() for s in splits.values()}
        assert len(archives) == 12
        assert all(re.fullmatch(r"[0-9a-f]{32}", a.md5) for a in archives)
        assert len({a.md5 for a in archives}) == 12

    def test_names(self):
        assert [s.name for s in splits_named("s2ef", "200k,val")] == ["train", *oc20_catalogue.VALIDATION]
        assert [s.published for s in splits_named("is2rs", "10k, test_id")] == ["10k", "test_id"]
        with pytest.raises(InputError, match=r"s2ef has no split '200K' \(did you mean '200k'\?\); its splits: 200k"):
            splits_named("s2ef", "200K")
        with pytest.raises(InputError, match="unknown task 's2fe'"):
            splits_named("s2fe", "200k")
        with pytest.raises(InputError, match="would be the same directory"):
            splits_named("is2re", "10k,all")


@pytest.mark.usefixtures("published")
class TestDownload:
    def test_s2ef(self, server, capsys, tmp_path):
        out, _ = run(capsys, tmp_path / "d", "--split", "200k,val", "--mirror", server.url, "--mapping", "download")
        assert "s2ef/train: 30 structures read, 30 written" in out
        assert "OC20's page says 30 structures" in out  # of the small val_id
        splits = splits_of(tmp_path / "d", "s2ef")
        assert list(splits) == ["train", "val_id", "val_ood_ads", "val_ood_both", "val_ood_cat"]
        store = Store(splits["train"])
        np.testing.assert_array_equal(store.array("forces"), np.concatenate([s.forces for s in FRAMES]))
        assert store.info.energy_reference == "adsorption"
        assert store.info.provenance["split"] == "200k"
        assert store[3].info["bulk_mpid"] == f"mp-{FRAMES[3].sid}"
        assert [p.name for p in (tmp_path / "d").rglob("*.tar")] == [], "archives are removed"
        assert main(["data", "info", str(tmp_path / "d"), "--verify"]) == 0
        text = capsys.readouterr().out
        assert "CC-BY 4.0" in text
        assert "s2ef/val_id: 4 systems, 12 structures" in text

    def test_is2re_and_a_second_call(self, server, capsys, tmp_path):
        out, _ = run(capsys, tmp_path / "d", "--task", "is2re", "--split", "10k,val_id,test_id", "--mirror", server.url)
        assert "is2re/train: 10 structures read, 10 written" in out
        store = Store(tmp_path / "d" / "is2re" / "train")
        assert store.array("relaxed_energy").tolist() == [s.relaxed_energy for s in SYSTEMS[:10]]
        assert store.precision == "float32"
        assert "relaxed_energy" not in Store(tmp_path / "d" / "is2re" / "test_id").fields
        n_requests = len(server.requests)
        out, _ = run(capsys, tmp_path / "d", "--task", "is2re", "--split", "10k,val_id", "--mirror", server.url)
        assert out.count("is there already") == 2
        assert len(server.requests) == n_requests
        _, error = run(capsys, tmp_path / "d", "--task", "is2re", "--split", "all", "--mirror", server.url)
        assert "is2re/train: holds split '10k', not 'all'; choose another directory" in error

    def test_every_published_split(self, server, capsys, tmp_path):
        for splits in ("200k,val,test,rattled,md",):
            run(capsys, tmp_path / "d", "--split", splits, "--mirror", server.url)
        assert {p.name for p in (tmp_path / "d" / "s2ef").iterdir()} == {
            "train",
            "rattled",
            "md",
            *oc20_catalogue.VALIDATION,
            *oc20_catalogue.TEST,
        }
        run(capsys, tmp_path / "d", "--task", "is2rs", "--split", "100k,val,test", "--mirror", server.url)
        assert len(Store(tmp_path / "d" / "is2re" / "train")) == 20
        assert sorted(s.id for s in Store(tmp_path / "d" / "s2ef" / "test_id")) == sorted(s.id for s in FRAMES)

    def test_broken_connections(self, server, capsys, tmp_path):
        server.break_after = 4000
        out, _ = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        assert "30 written" in out
        starts = [int(wanted.removeprefix("bytes=")[:-1]) for _, wanted in server.requests if wanted]
        assert starts == sorted(set(starts)), "goes on where it was"
        assert len(starts) >= 3

    def test_a_server_without_ranges(self, server, capsys, tmp_path):
        server.break_after, server.n_breaks, server.ranges = 4000, 2, False
        out, _ = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        assert "30 written" in out

    def test_connection_that_never_holds_and_a_later_call(self, server, capsys, tmp_path):
        run_of = (capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        server.break_after, server.n_breaks = 4000, 1
        server.status = 0
        files, server.files = server.files, dict(server.files)
        name = "s2ef_train_200K.tar"

        def vanish() -> None:
            server.break_after, server.n_breaks = 0, 1_000_000

        (tmp_path / "d" / "downloads").mkdir(parents=True)
        (tmp_path / "d" / "downloads" / f"{name}.part").write_bytes(files[name][:4000])
        vanish()
        _, error = run(*run_of)
        assert "the connection breaks again and again (it closed at 4,000 of" in error
        assert "goes on at 4,000 bytes" in error
        server.break_after = None
        out, _ = run(*run_of)
        assert "30 written" in out
        assert server.requests[-1] == (name, "bytes=4000-")

    def test_complete_file_that_was_not_renamed(self, server, tmp_path):
        data = server.files["oc20_data_mapping.pkl"]
        (tmp_path / "m.part").write_bytes(data)
        download(f"{server.url}/oc20_data_mapping.pkl", tmp_path / "m", progress=False)
        assert (tmp_path / "m").read_bytes() == data
        (tmp_path / "n.part").write_bytes(data + b"longer")
        download(f"{server.url}/oc20_data_mapping.pkl", tmp_path / "n", progress=False)
        assert (tmp_path / "n").read_bytes() == data

    def test_wrong_checksum(self, server, capsys, tmp_path):
        name = "s2ef_train_200K.tar"
        data = bytearray(server.files[name])
        data[len(data) // 2] ^= 1
        server.files[name] = bytes(data)
        _, error = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        assert re.search(rf"{name}: its MD5 sum is {hashlib.md5(data).hexdigest()}, published is \w+; .*removed", error)
        assert not list((tmp_path / "d").rglob("s2ef*"))

    def test_refusals(self, server, capsys, tmp_path):
        del server.files["s2ef_train_200K.tar"]
        _, error = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        assert "s2ef_train_200K.tar: the server answers 404" in error
        assert "check the mirror" in error
        server.status = 503
        _, error = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        assert "breaks again and again (the server answers 503" in error
        _, error = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", "http://127.0.0.1:1")
        assert "Connection refused" in error

    def test_archive_with_a_way_out(self, tmp_path):
        (tmp_path / "evil").write_text("x")
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(tmp_path / "evil", "../evil2")
        with pytest.raises(InputError, match=r"a.tar: damaged archive .*outside"):
            unpack(tmp_path / "a.tar", tmp_path / "u", lambda name: True, progress=False)
        assert not (tmp_path.parent / "evil2").exists()
        (tmp_path / "b.tar").write_bytes(b"no archive")
        with pytest.raises(InputError, match=r"b.tar: damaged archive"):
            unpack(tmp_path / "b.tar", tmp_path / "u", lambda name: True, progress=False)
        with pytest.raises(InputError, match=r"nothing in it that is wanted"):
            unpack(tmp_path / "a.tar", tmp_path / "u", lambda name: False, progress=False)


@pytest.mark.usefixtures("published")
class TestFullDisk:
    def test_limit_on_file_size(self, server, capsys, tmp_path):
        """The operating system refuses to write on; what was fetched is kept, and a later call goes on."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
        try:
            _, error = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert re.search(
            r"s2ef_train_200K.tar.part: the disk is full .*free some space and run the command again", error
        )
        assert (tmp_path / "d" / "downloads" / "s2ef_train_200K.tar.part").stat().st_size == 8000
        out, _ = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
        assert "30 written" in out
        assert server.requests[-1][1] == "bytes=8000-"

    def test_small_file_system(self, server, capsys, tmp_path):
        (tmp_path / "d").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "d")]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("cannot mount a small file system here")
        try:
            _, error = run(capsys, tmp_path / "d", "--split", "200k", "--mirror", server.url)
            assert re.search(r"/d: needs 0.\d GB, 0.0 GB are free; free some space or choose another place", error)
            assert server.requests == [], "checked first"
        finally:
            subprocess.run(["umount", str(tmp_path / "d")], check=True)

    def test_disk_that_fills_while_converting(self, capsys, tmp_path):
        (tmp_path / "d").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "d")]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("cannot mount a small file system here")
        raw = write_raw(tmp_path / "raw", [oc20_like(seed, 60) for seed in range(100)], 20)
        try:
            _, error = run(capsys, tmp_path / "d", "--from", raw)
            assert re.search(r"the disk is full \(No space left on device\)", error)
            assert not (tmp_path / "d" / "s2ef" / "train").exists()
            grow = ["mount", "-o", "remount,size=4m", str(tmp_path / "d")]
            subprocess.run(grow, check=True)
            out, _ = run(capsys, tmp_path / "d", "--from", raw)
            assert "100 written" in out
        finally:
            subprocess.run(["umount", str(tmp_path / "d")], check=True)

    def test_space_is_that_of_the_nearest_folder_that_exists(self, tmp_path):
        require_space(tmp_path / "a" / "b", 1.0)
        with pytest.raises(InputError, match=r"b: needs 1,000,000,000.0 GB, [\d.,]+ GB are free"):
            require_space(tmp_path / "a" / "b", 1e18)


class TestFromDisk:
    def test_as_published(self, tmp_path, capsys):
        write_raw(tmp_path / "in" / "s2ef_train_200K" / "s2ef_train_200K", FRAMES, 7)
        write_raw(tmp_path / "in" / "s2ef_val_id" / "s2ef_val_id", FRAMES[:9], 7)
        out, _ = run(capsys, tmp_path / "d", "--from", tmp_path / "in", "--split", "200k,val_id")
        assert "train: 30 structures read, 30 written" in out
        assert "val_id: 9 structures read, 9 written" in out

    def test_as_fairchem_arranges_it(self, tmp_path, capsys):
        write_lmdb(tmp_path / "in" / "s2ef" / "2M" / "train" / "data.0000.lmdb", FRAMES)
        write_lmdb(tmp_path / "in" / "s2ef" / "all" / "val_id" / "data.0000.lmdb", FRAMES[:9])
        write_lmdb(tmp_path / "in" / "is2re" / "10k" / "train" / "data.lmdb", SYSTEMS, "old", False)
        out, _ = run(capsys, tmp_path / "d", "--from", tmp_path / "in", "--split", "2M,val_id")
        assert "val_id: 9 structures" in out
        out, _ = run(capsys, tmp_path / "d", "--from", tmp_path / "in", "--split", "10k", "--task", "is2re")
        assert "is2re/train: 30 structures" in out

    def test_the_files_themselves(self, tmp_path, capsys):
        out, _ = run(capsys, tmp_path / "d", "--from", write_raw(tmp_path / "in", FRAMES, 7), "--split", "md")
        assert "s2ef/md: 30 structures" in out
        path = write_lmdb(tmp_path / "a.lmdb", SYSTEMS)
        out, _ = run(capsys, tmp_path / "d", "--from", path, "--task", "is2re", "--split", "all")
        assert "is2re/train: 30 structures" in out

    def test_mapping_beside_the_files(self, tmp_path, capsys, archives):
        raw = write_raw(tmp_path / "in", FRAMES, 7)
        (raw / "oc20_data_mapping.pkl").write_bytes(archives["oc20_data_mapping.pkl"])
        run(capsys, tmp_path / "d", "--from", raw)
        assert Store(tmp_path / "d" / "s2ef" / "train").columns[-3:] == ["bulk_mpid", "ads_symbols", "anomaly"]

    def test_bad_frames_and_strict(self, tmp_path, capsys):
        bad = [Structure.unchecked(**vars(s) | ({"energy": np.nan} if i == 4 else {})) for i, s in enumerate(FRAMES)]
        write_lmdb(tmp_path / "in" / "data.lmdb", bad)
        _, error = run(capsys, tmp_path / "d", "--from", tmp_path / "in", "--strict")
        assert "data.lmdb, entry 4: energy is not finite" in error
        assert not (tmp_path / "d" / "s2ef" / "train").exists()
        out, _ = run(capsys, tmp_path / "d", "--from", tmp_path / "in")
        assert "30 structures read, 29 written, 1 bad ones left out" in out
        assert "data.lmdb, entry 4: energy is not finite" in out

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"sid": None}, "not an OC20 structure (no 'sid'); found "),
            ({"fixed": torch.tensor([0])}, "not an OC20 structure (fixed has 1 values for "),
            ({"pos": torch.zeros(2)}, "not an OC20 structure (cannot reshape"),
        ],
    )
    @pytest.mark.parametrize("strict", [[], ["--strict"]])
    def test_not_one_good_entry(self, tmp_path, capsys, change, reason, strict):
        write_lmdb(tmp_path / "in" / "data.lmdb", FRAMES[:3], "old", change=change)
        _, error = run(capsys, tmp_path / "d", "--from", tmp_path / "in", *strict)
        assert "none of 3 structures is good; the first: " in error
        assert f"data.lmdb, entry 0: {reason}" in error
        assert not list(tmp_path.glob("d/s2ef/*"))

    @pytest.mark.parametrize(("sid", "expected"), [("slab-7", "slab-7"), ("random7", "7"), (torch.tensor([7.0]), "7")])
    def test_system_ids_may_be_text(self, tmp_path, capsys, sid, expected):
        write_lmdb(tmp_path / "in" / "data.lmdb", FRAMES[:2], "old", change={"sid": sid})
        run(capsys, tmp_path / "d", "--from", tmp_path / "in")
        assert [s.sid for s in Store(tmp_path / "d" / "s2ef" / "train")] == [expected] * 2

    def test_energies_of_ones_own_lmdb(self, tmp_path, capsys):
        write_lmdb(tmp_path / "in" / "data.lmdb", [dataclasses.replace(s, energy=-200.0) for s in FRAMES[:2]], "old")
        out, _ = run(capsys, tmp_path / "d", "--from", tmp_path / "in")
        assert "the first energy is -200.0 eV: if these are no adsorption energies, say --energy_reference total" in out
        out, _ = run(capsys, tmp_path / "t", "--from", tmp_path / "in", "--energy_reference", "total")
        assert "first energy" not in out
        assert Store(tmp_path / "t" / "s2ef" / "train").info.energy_reference == "total"
        assert "energies are       total" in describe(tmp_path / "t")
        _, error = run(capsys, tmp_path / "d", "--from", tmp_path / "in", "--energy_reference", "total")
        assert "its energies are 'adsorption', not 'total'; choose another directory" in error

    def test_total_energies_of_raw_files(self, tmp_path, capsys):
        raw = write_raw(tmp_path / "in", FRAMES, 7)
        out, _ = run(capsys, tmp_path / "a", "--from", raw)
        assert "OC20's S2EF data have no clean slabs: nothing tells a model that their energy is 0 eV" in out
        run(capsys, tmp_path / "t", "--from", raw, "--energy_reference", "total")
        adsorption, total = (Store(tmp_path / name / "s2ef" / "train") for name in "at")
        np.testing.assert_allclose(
            total.array("energy"), adsorption.array("energy") + adsorption.array("reference_energy"), atol=1e-9
        )
        _, error = run(capsys, tmp_path / "r", "--from", raw, "--energy_reference", "relative")
        assert "raw files have adsorption energies, or total ones; not relative" in error

    def test_other_commands_name_the_one_for_lmdbs(self, tmp_path, capsys):
        write_lmdb(tmp_path / "data.lmdb", FRAMES[:2], "old")
        assert main(["data", "info", str(tmp_path / "data.lmdb")]) == 2
        assert "is an LMDB; make a store of it with `equicat data oc20 OUT --from " in capsys.readouterr().err

    def test_an_empty_file(self, tmp_path, capsys):
        write_lmdb(tmp_path / "in" / "data.lmdb", [], "old")
        _, error = run(capsys, tmp_path / "d", "--from", tmp_path / "in")
        assert "in: no structures" in error

    def test_nothing_there(self, tmp_path, capsys):
        (tmp_path / "in").mkdir()
        _, error = run(capsys, tmp_path / "d", "--from", tmp_path / "in")
        assert "no files of split '200k' of task s2ef; looked for" in error
        assert "s2ef_train_200K/s2ef_train_200K" in error
        _, error = run(capsys, tmp_path / "d", "--from", tmp_path / "nowhere")
        assert "nowhere: no files of split" in error

    def test_the_wrong_task(self, tmp_path, capsys):
        raw = write_raw(tmp_path / "in", FRAMES, 7)
        _, error = run(capsys, tmp_path / "d", "--from", raw, "--task", "is2re", "--split", "10k")
        assert "0.extxyz.xz, frame 0: no relaxed_energy, which split 10k of is2re has; found energy, forces" in error

    def test_subset(self, tmp_path, capsys):
        run(capsys, tmp_path / "d", "--from", write_raw(tmp_path / "in", FRAMES, 7))
        store = tmp_path / "d" / "s2ef" / "train"
        words = ["data", "subset", store, tmp_path / "few", "--size", "11", "--progress", "false"]
        assert main([str(word) for word in words]) == 0
        assert "11 structures" in capsys.readouterr().out
        few = Store(tmp_path / "few")
        assert few.info.provenance["seed"] == 0
        assert few.columns == ["reference_energy", "free_energy"]
        assert {s.id for s in few} < {s.id for s in FRAMES}
        words[2] = tmp_path / "d"
        assert main([str(word) for word in words]) == 2
        assert "holds several splits or no store; name one of: s2ef/train" in capsys.readouterr().err
