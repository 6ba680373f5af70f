"""`equicat bench data`: what is counted is read, the table says what was measured, failures are named."""

import json
import sys

import numpy as np
import pytest
from conftest import labelled

from equicat.bench.data import TARGETS, DataBenchConfig, as_text, bench_data
from equicat.cli.main import main
from equicat.data.info import DatasetInfo
from equicat.data.neighbors import neighbor_list
from equicat.data.store import Store, write_store
from equicat.errors import InputError

N = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "train"
    write_store(path, map(labelled, range(N)), DatasetInfo("adsorption"))
    return path


@pytest.fixture(scope="module")
def result(store):
    config = DataBenchConfig(n_read=30, n_batched=7, batch_size=3, cutoff=4.0, repeats=2)
    return bench_data(store, config, say=lambda line: None)


def test_what_is_counted_is_read(result, store):
    row = result["rows"]["equicat"]
    assert len(row["runs"]) == 2
    assert all(run["n_read"] == 30 and run["n_batched"] == 7 for run in row["runs"])
    rng = np.random.default_rng(0)
    chosen = rng.permutation(N)[:30]
    data, batched = Store(store), chosen[rng.permutation(30)][:7]
    assert row["n_edges"] == sum(neighbor_list(data[int(i)], 4.0)[0].shape[1] for i in batched)
    assert result["store"]["n_structures"] == N
    assert result["store"]["atoms"] == pytest.approx(np.mean([len(labelled(k)) for k in range(N)]))
    assert len(result["stream"]["memory"]) == 11


def test_rates_are_medians_and_extrapolate(result):
    row = result["rows"]["equicat"]
    rates = [run["n_read"] / run["read"] for run in row["runs"]]
    assert row["read"] == pytest.approx(np.median(rates))
    for name, n in TARGETS.items():
        assert result["extrapolation"][name]["hours_read"] == pytest.approx(n / row["read"] / 3600)
    assert result["times_faster"] == {}


def test_the_text_tells_each_row(result):
    text = as_text(result)
    for word in ("equicat", "an epoch:", *TARGETS):
        assert word in text


def test_command_writes_json(store, tmp_path, capsys):
    out = tmp_path / "data.json"
    options = ["--n_read", "5", "--n_batched", "2", "--repeats", "1", "--cutoff", "4", "--stream", "false"]
    assert main(["bench", "data", str(store), *options, "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["rows"]["equicat"]["read"] > 0
    assert "stream" not in found
    assert "read [1/s]" in capsys.readouterr().out


def test_a_peer_that_is_not_there_is_named(store):
    """The tests' own environment has no fairchem 1.10."""
    config = DataBenchConfig(peer_python=sys.executable, n_read=2, n_batched=1, repeats=1, stream=False)
    with pytest.raises(InputError, match=r"cannot write \(.*fairchem.*does it have fairchem-core 1\.10\?"):
        bench_data(store, config, say=lambda line: None)
