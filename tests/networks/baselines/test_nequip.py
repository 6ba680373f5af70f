"""The adapter to the nequip package: its own model on the same weights, physics, and vectors."""

import math
import sys

import pytest
import torch
from conftest import SMALL
from torch.nn.utils.parametrize import is_parametrized

from equicat import testing
from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.heads import ScalarHead
from equicat.models.potential import Potential
from equicat.networks.baselines.nequip import NequIP, NequIPConfig

pytest.importorskip("nequip", reason="NequIP needs the nequip package (extra: nequip)")

ELEMENTS = (1, 8, 29)
CONFIG = NequIPConfig(
    cutoff=4.0, n_layers=2, l_max=2, n_channels=4, n_bessel=6, radial_mlp_width=8, avg_num_neighbors=12.0
)


def small(vectors: bool = False) -> NequIP:
    torch.manual_seed(0)
    return NequIP(CONFIG, 3, vectors).double().eval()


def graph():
    batch = Batch.from_structures(testing.example_structures(ELEMENTS), CONFIG.cutoff, dtype=torch.float64)
    return batch, torch.searchsorted(torch.tensor(ELEMENTS), batch.numbers)


def test_is_the_model_of_the_package():
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    default = torch.get_default_dtype()
    set_global_state()
    torch.set_default_dtype(default)  # the package sets its own
    theirs = NequIPGNNModel(
        seed=0,
        model_dtype="float64",
        r_max=CONFIG.cutoff,
        type_names=["H", "O", "Cu"],
        num_layers=CONFIG.n_layers,
        l_max=CONFIG.l_max,
        num_features=CONFIG.n_channels,
        radial_mlp_width=CONFIG.radial_mlp_width,
        num_bessels=CONFIG.n_bessel,
        avg_num_neighbors=CONFIG.avg_num_neighbors,
        per_type_energy_scales=1.0,
        per_type_energy_shifts=0.0,
        do_derivatives=False,
    )
    network = next(m for m in theirs.modules() if "type_embed" in dict(m.named_children()))
    ours = small()
    weights = dict(network.named_parameters())
    with torch.no_grad():
        ours.embedding.weight.copy_(weights.pop("type_embed.embed_module.weight"))
        for name, module in ours.layers.named_modules():
            if is_parametrized(module):
                module.weight = weights.pop("layer{}_convnet.{}.weight".format(*name.split(".", 1))).detach()
    assert sorted(weights) == [w for w in sorted(weights) if w.startswith("per_atom_energy_readout")], "all are used"
    batch, species = graph()
    data = {"pos": batch.positions, "cell": batch.cell, "batch": batch.system_idx, "atom_types": species}
    data |= {"edge_index": batch.edge_index, "edge_cell_shift": batch.edge_shift.double()}
    data |= {"num_atoms": batch.n_atoms}
    expected = network(data)["node_features"]
    found = ours(batch.edge_vec(), batch.edge_index, species).scalars
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected)


def test_optimiser_sees_matrices_at_the_size_at_which_they_act():
    ours = small()
    matrices = dict(ours.layers.named_parameters())
    assert all(p.ndim == 2 for p in matrices.values())
    for name, p in matrices.items():
        gain = math.sqrt(2) if "mlp.2" in name else 1.0  # after a SiLU
        assert p.detach().std().item() * math.sqrt(len(p)) == pytest.approx(gain, rel=0.3), name
    assert any(len(p) == CONFIG.n_channels**2 for p in matrices.values()), "self-connection: features times elements"


def test_physics():
    potential = Potential(SMALL, ELEMENTS)
    potential.config, potential.network = CONFIG, small()
    potential.head = ScalarHead(CONFIG.n_channels, (4,), 1.0)
    # Constants come from float64 again, so that the cast in between rounds weights only.
    testing.check_all(potential.float(), strictly_local=False)
    with pytest.raises(AssertionError, match=r"^strict locality"):
        testing.check_strict_locality(potential)


def test_vectors_turn_and_reflect():
    model = small(vectors=True)
    assert model.n_vectors == CONFIG.n_channels
    batch, species = graph()
    edge_vec = batch.edge_vec()
    before = model(edge_vec, batch.edge_index, species)
    assert before.vectors.abs().max() > 1e-6
    for matrix in (torch.from_numpy(testing.random_rotation()), -torch.eye(3, dtype=torch.float64)):
        after = model(edge_vec @ matrix.T, batch.edge_index, species)
        torch.testing.assert_close(after.vectors, torch.einsum("xy,nyu->nxu", matrix, before.vectors))
        torch.testing.assert_close(after.scalars, before.scalars)
    assert small()(edge_vec, batch.edge_index, species).vectors is None


def test_says_what_is_missing(monkeypatch):
    with pytest.raises(InputError, match=r"model.avg_num_neighbors is not set"):
        NequIP(NequIPConfig(), 3)
    monkeypatch.setitem(sys.modules, "nequip.utils", None)
    with pytest.raises(InputError, match=r"nequip.utils is not installed; run `pip install 'equicat\[nequip\]'`"):
        small()
    assert torch.get_default_dtype() == torch.float32
