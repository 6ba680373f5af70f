"""`equicat predict --relax`: the leaderboard file holds what `equicat relax` finds, and nothing is lost on the way."""

import dataclasses

import numpy as np
import pytest
from conftest import relaxing
from places import FIXTURES

import equicat
from equicat.apply.predict_relaxed import predict_relaxed
from equicat.cli.main import main
from equicat.data.info import DatasetInfo
from equicat.data.readers import write
from equicat.data.store import write_store
from equicat.errors import InputError
from equicat.relaxation.config import RelaxConfig
from equicat.relaxation.relax import relax
from equicat.tasks.leaderboard import LEADERBOARD_SPLITS, check_submission

CONFIG = RelaxConfig(max_steps=4)


def systems_of(first: int) -> list[equicat.Structure]:
    return [dataclasses.replace(relaxing(seed), sid=str(200 - seed)) for seed in range(first, first + 2)]


@pytest.fixture
def splits(tmp_path):
    """A data set directory with the four splits of a submission, two systems each; ids are not in string order."""
    for k, name in enumerate(LEADERBOARD_SPLITS):
        write_store(tmp_path / "data" / "is2re" / f"val_{name}", systems_of(2 * k), DatasetInfo("adsorption"))
    return tmp_path / "data"


def test_the_file_holds_relaxed_energies_and_positions_of_every_split(run, splits, tmp_path, capsys):
    out = tmp_path / "sub.npz"
    options = [
        "--relax",
        "--submission",
        "val",
        "--out",
        str(out),
        "--relaxation.max_steps",
        "4",
        "--progress",
        "false",
    ]
    assert main(["predict", str(run), str(splits), *options]) == 0
    assert "8 structures" in capsys.readouterr().out
    assert check_submission(out).count("IS2RE and IS2RS, 2 systems") == 4
    with np.load(out) as arrays:
        for k, name in enumerate(LEADERBOARD_SPLITS):
            systems = systems_of(2 * k)[::-1]  # in the order of their ids
            relaxed = relax(systems, run, CONFIG, progress=False).structures
            assert arrays[f"{name}_ids"].tolist() == [s.sid for s in systems]
            energies = [s.energy for s in relaxed]
            np.testing.assert_array_equal(arrays[f"{name}_energy"][:, 0], np.array(energies).astype("float16"))
            positions = np.concatenate([s.positions for s in relaxed])
            np.testing.assert_allclose(arrays[f"{name}_pos"], positions, rtol=0, atol=1e-8)
            assert arrays[f"{name}_chunk_idx"].tolist() == [len(systems[0])]
    assert len(list(equicat.read(tmp_path / "sub.extxyz"))) == 8
    assert main(["predict", str(run), str(splits), *options]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_several_processes_make_one_file(run, tmp_path, monkeypatch):
    write(tmp_path / "systems.extxyz", systems_of(0))
    for rank, expected in ((1, None), (0, 2)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        out = tmp_path / "sub.npz"
        assert predict_relaxed(run, [tmp_path / "systems.extxyz"], CONFIG, out=out, progress=False) == expected
        assert out.exists() == (rank == 0)
    assert "IS2RE and IS2RS, 2 systems" in check_submission(out)


def test_a_system_without_finite_numbers_counts_with_the_mean_energy(run, tmp_path, monkeypatch):
    broken = dataclasses.replace(systems_of(0)[0], energy=None, forces=None)
    monkeypatch.setattr(
        "equicat.apply.predict_relaxed.relax",
        lambda systems, *_, **__: type(
            "Done", (), {"structures": [broken, *relax(systems, run, CONFIG).structures[1:]]}
        ),
    )
    write(tmp_path / "systems.extxyz", systems_of(0))
    predict_relaxed(run, [tmp_path / "systems.extxyz"], CONFIG, out=tmp_path / "sub.npz", progress=False)
    with np.load(tmp_path / "sub.npz") as arrays:
        mean = equicat.load(run).info.statistics.mean_energy
        assert arrays["energy"][arrays["ids"].tolist().index(broken.sid), 0] == np.float16(mean)


def test_what_cannot_become_a_leaderboard_file_is_refused_before_relaxing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("equicat.apply.predict_relaxed.relax", lambda *_, **__: pytest.fail("relaxed"))
    nameless = tmp_path / "nameless.extxyz"
    write(nameless, [dataclasses.replace(s, sid="") for s in systems_of(0)])
    with pytest.raises(InputError, match="different id for every structure"):
        predict_relaxed(run, [nameless], out=tmp_path / "sub.npz")
    with pytest.raises(InputError, match="`equicat relax` writes structures"):
        predict_relaxed(run, [nameless], out=tmp_path / "sub.extxyz")
    with pytest.raises(InputError, match="gives no forces"):
        predict_relaxed(FIXTURES / "runs_b139b12" / "is2re_displacements", [nameless], out=tmp_path / "sub.npz")
