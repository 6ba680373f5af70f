"""Configurations of the baselines: published sizes, small ones of equal size, published results with sources."""

import csv
from pathlib import Path

import pytest
import torch
from places import ROOT

from equicat.models.heads import needs_vectors
from equicat.networks.catalogue import NETWORKS, with_neighbors
from equicat.options.text import read_yaml
from equicat.training.config import from_mapping
from equicat.training.presets import FOLDER, find_configuration

pytest.importorskip("torch_geometric", reason="the baselines need torch_geometric (extra: baselines)")

TOY_ELEMENTS = (1, 6, 7, 8, 13, 28, 29, 46, 47, 78, 79)

PUBLISHED_SIZES = {
    # As fairchem 1.10 and OCP count; rows of their element tables; weights of their readout, its constant included.
    "s2ef/200k/cgcnn": (245_889, 100, 129),
    "s2ef/2M/cgcnn": (2_127_233, 100, 129),
    "is2re/all/cgcnn": (5_039_489, 100, 513),
    "s2ef/200k/schnet": (5_704_193, 100, 513),
    "s2ef/2M/schnet": (9_088_513, 100, 513),
    "is2re/all/schnet": (1_216_385, 100, 193),
    "is2re/100k/schnet": (1_216_385, 100, 193),
    "s2ef/200k/dimenet_plus_plus": (1_810_182, 95, 768),
    "s2ef/2M/dimenet_plus_plus": (1_810_182, 95, 768),
    "is2re/10k/dimenet_plus_plus": (2_755_462, 95, 768),
    "is2re/all/dimenet_plus_plus": (2_755_462, 95, 768),
    "s2ef/200k/gemnet_dt": (31_671_808, 83, 2048),
    "s2ef/2M/gemnet_dt": (31_671_808, 83, 2048),
}


def n_weights(path: Path, elements: tuple[int, ...]) -> tuple[int, int]:
    """Weights of the network that a configuration describes, and its scalar features."""
    values = from_mapping(read_yaml(path))
    config = with_neighbors(values.model, 20.0)
    network = NETWORKS[config.name].build(config, elements, needs_vectors(values.force_head))
    return sum(p.numel() for p in network.parameters()), network.n_features


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_oc20_configurations_have_the_published_numbers_of_parameters(name, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda weight: weight)  # seconds, and not what is tested
    published, n_elements, readout = PUBLISHED_SIZES[name]
    found, _ = n_weights(find_configuration(f"oc20/{name}"), tuple(range(1, n_elements + 1)))
    assert found + readout == published


def test_there_is_a_configuration_for_each_published_size():
    found = {p.relative_to(FOLDER / "oc20").with_suffix("").as_posix() for p in (FOLDER / "oc20").rglob("*.yaml")}
    models = ("cgcnn", "schnet", "dimenet_plus_plus")
    assert {f"is2re/{size}/{m}" for size in ("10k", "100k", "all") for m in models} <= found
    assert {f"s2ef/{size}/{m}" for size in ("200k", "2M") for m in (*models, "gemnet_dt")} <= found
    assert {f"is2re/{size}/{m}" for size in ("10k", "100k", "all") for m in ("allegro", "dimenet")} <= found
    assert {f"s2ef/{size}/{m}" for size in ("200k", "2M") for m in ("allegro", "gemnet_t")} <= found
    assert {"is2rs/100k/schnet", "is2rs/100k/allegro"} <= found


@pytest.mark.parametrize("path", sorted((FOLDER / "small").glob("*.yaml")), ids=lambda p: p.stem)
def test_small_networks_are_of_equal_size(path):
    if path.stem == "nequip":
        pytest.importorskip("nequip", reason="NequIP needs the nequip package (extra: nequip)")
    reference, _ = n_weights(find_configuration("small"), TOY_ELEMENTS)
    found, n_features = n_weights(path, TOY_ELEMENTS)
    (hidden,) = from_mapping(read_yaml(path)).output_mlp
    # With their heads: the Allegro's is 64 × 32 + 32.
    assert found + (n_features + 1) * hidden == pytest.approx(reference + 65 * 32, rel=0.12)


def test_small_networks_are_trained_alike():
    configs = [from_mapping(read_yaml(path)) for path in (FOLDER / "small").glob("*.yaml")]
    assert {config.model.name for config in configs} == {*NETWORKS} - {"nequip-allegro"}
    alike = [(c.optimizer, c.loss, c.run.batch_size, c.run.max_minutes, c.model.cutoff) for c in configs]
    assert all(one == alike[0] for one in alike)


def test_built_in_configurations_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_configuration("small") == find_configuration("small/allegro") == FOLDER / "small" / "allegro.yaml"
    (tmp_path / "small").write_text("task: is2re")
    assert find_configuration("small") == Path("small"), "a file that is there goes first"


def test_published_results_have_sources():
    with (ROOT / "equicat" / "studies" / "published_oc20.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    assert len({tuple(row[k] for k in ("task", "size", "model", "metric", "split")) for row in rows}) == len(rows)
    for row in rows:
        assert row["task"] in ("s2ef", "is2re", "is2rs")
        assert 0 <= float(row["value"]) < 2
        assert row["source"].strip()
    values = {(r["task"], r["size"], r["model"], r["metric"]): float(r["value"]) for r in rows}
    assert values["is2re", "all", "dimenet++", "energy_mae"] == 0.5639
    assert values["s2ef", "all", "gemnet-dt", "forces_mae"] == 0.0211
