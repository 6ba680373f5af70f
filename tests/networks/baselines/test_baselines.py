"""SchNet, CGCNN, DimeNet, DimeNet++ and GemNet: against the originals, against brute force, and on physics."""

import dataclasses
import itertools
import sys

import brute_force
import numpy as np
import pytest
import torch
from ase.build import molecule
from conftest import SMALL

from equicat import testing
from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.kernels import forms
from equicat.models.heads import ScalarHead
from equicat.models.potential import Potential
from equicat.networks.baselines import angles, gemnet, memory, padding
from equicat.networks.baselines.angles import AngularSums, once_per_pair, reverse_edges
from equicat.networks.baselines.cgcnn import CATEGORIES, CGCNN, CGCNNConfig, element_properties
from equicat.networks.baselines.dimenet import (
    DimeNet,
    DimeNetConfig,
    DimeNetPlusPlus,
    DimeNetPlusPlusConfig,
    Triplets,
    legendre,
)
from equicat.networks.baselines.gemnet import GemNet, GemNetConfig, fit_scales
from equicat.networks.baselines.gemnet_layers import Scale
from equicat.networks.baselines.schnet import SchNet, SchNetConfig

geometric = pytest.importorskip("torch_geometric", reason="the baselines need torch_geometric (extra: baselines)")
import pyg_reference  # noqa: E402

ELEMENTS = (1, 8, 29)
CUTOFF = 4.0
CONFIGS = {
    "schnet": SchNetConfig(cutoff=CUTOFF, hidden_channels=12, n_filters=8, n_interactions=2, n_gaussians=10),
    "cgcnn": CGCNNConfig(cutoff=CUTOFF, atom_embedding_size=8, fc_feat_size=8, n_fc_layers=2, n_gaussians=10),
    "dimenet": DimeNetConfig(cutoff=CUTOFF, hidden_channels=8, n_blocks=2, n_bilinear=3, n_spherical=4, n_radial=3),
    "dimenet-end": DimeNetConfig(
        cutoff=CUTOFF, hidden_channels=8, n_blocks=1, n_bilinear=3, n_spherical=3, n_radial=3, angle_at="end"
    ),
    "dimenet++": DimeNetPlusPlusConfig(
        cutoff=CUTOFF, hidden_channels=8, out_emb_channels=10, n_blocks=2, int_emb_size=6, n_spherical=4, n_radial=3
    ),
    "gemnet": GemNetConfig(
        cutoff=CUTOFF,
        n_blocks=2,
        atom_features=10,
        edge_features=8,
        triplet_features=6,
        bilinear_features=5,
        rbf_features=4,
        cbf_features=3,
        n_radial=12,
        n_spherical=4,
    ),
}


def network(
    name: str, elements: tuple[int, ...] = ELEMENTS, vectors: bool = False, **changes: object
) -> torch.nn.Module:
    """A small network, its weights drawn with a fixed seed."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIGS[name], **changes)
    return build(config, elements, vectors)


def build(config: object, elements: tuple[int, ...], vectors: bool = False) -> torch.nn.Module:
    """The network of a configuration, in evaluation mode."""
    classes = {
        SchNetConfig: SchNet,
        DimeNetConfig: DimeNet,
        DimeNetPlusPlusConfig: DimeNetPlusPlus,
    }
    if isinstance(config, CGCNNConfig):
        return CGCNN(config, len(elements), elements).eval()
    if isinstance(config, GemNetConfig):
        return GemNet(config, len(elements), vectors).eval()
    return classes[type(config)](config, len(elements)).eval()


def potential(name: str, **changes: object) -> Potential:
    """A potential around the small network."""
    model = network(name, **changes)
    whole = Potential(SMALL, ELEMENTS)
    whole.config, whole.network = model.config, model
    whole.head = ScalarHead(model.n_features, (4,), 1.0)
    return whole.eval()


def graph(structures: list[Structure], cutoff: float = CUTOFF, elements: tuple[int, ...] = ELEMENTS):
    batch = Batch.from_structures(structures, cutoff, dtype=torch.float64)
    return batch.edge_vec(), batch.edge_index, torch.searchsorted(torch.tensor(elements), batch.numbers)


each = pytest.mark.parametrize("name", CONFIGS)


# ---- physics -------------------------------------------------------------------------------------------------------


@each
def test_physics(name):
    testing.check_all(potential(name), strictly_local=False)


@each
def test_messages_reach_further_than_the_cutoff(name):
    with pytest.raises(AssertionError, match=r"^strict locality"):
        testing.check_strict_locality(potential(name))


def test_cgcnn_as_published_jumps_at_the_cutoff():
    with pytest.raises(AssertionError, match=r"^smooth cutoff"):
        testing.check_smooth_cutoff(potential("cgcnn", smooth=False))


@each
def test_derivatives_of_forces_by_weights(name):
    """Training on forces takes a derivative through the angles, which fairchem's DimeNet++ lacks."""
    model = network(name).double()
    edge_vec, edge_index, species = graph(testing.example_structures(ELEMENTS)[2:])
    parameters = [p for p in model.parameters() if p.requires_grad]

    def force_norm(vec: torch.Tensor, create_graph: bool = True) -> torch.Tensor:
        vec = vec.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model(vec, edge_index, species).scalars.sin().sum(), vec, create_graph=True)
        return gradient.square().sum()

    gradients = torch.autograd.grad(force_norm(edge_vec), parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    step = 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * step)
        values.append(force_norm(edge_vec).item())
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=-sign * step)
    expected = (values[0] - values[1]) / (2 * step)
    found = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert abs(expected) > 1e-6
    assert found == pytest.approx(expected, rel=1e-5)


@each
def test_features_have_the_precision_of_the_weights(name):
    model = network(name)
    edge_vec, edge_index, species = graph(testing.example_structures(ELEMENTS))
    single = model(edge_vec.float(), edge_index, species).scalars
    assert single.dtype == torch.float32
    double = model.double()(edge_vec, edge_index, species).scalars
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5 * float(double.detach().abs().max()))


@each
def test_atoms_without_neighbours(name):
    """A batch with no edge at all."""
    lonely = Structure(np.array([1, 8]), np.array([[0.0, 0, 0], [50.0, 0, 0]]))
    features = network(name).double()(*graph([lonely]))
    assert features.scalars.isfinite().all()
    assert len(features.scalars) == 2


def test_vectors_of_gemnet_dt_turn_and_reflect():
    model = network("gemnet", vectors=True).double()
    edge_vec, edge_index, species = graph(testing.example_structures(ELEMENTS))
    before = model(edge_vec, edge_index, species)
    assert before.vectors.shape == (len(species), 3, model.n_vectors)
    assert before.vectors.abs().max() > 1e-3
    for matrix in (torch.from_numpy(testing.random_rotation()), -torch.eye(3, dtype=torch.float64)):
        after = model(edge_vec @ matrix.T, edge_index, species)
        torch.testing.assert_close(after.vectors, torch.einsum("xy,nyu->nxu", matrix, before.vectors))
        torch.testing.assert_close(after.scalars, before.scalars)
    assert network("gemnet").double()(edge_vec, edge_index, species).vectors is None


# ---- PyTorch Geometric's models ------------------------------------------------------------------------------------


def ethanol() -> Structure:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    return Structure(atoms.numbers, atoms.positions)


def transfer(theirs: torch.nn.Module, ours: torch.nn.Module, embedding: str, elements: tuple[int, ...]) -> None:
    """Load the original's weights, the rows of the elements that there are, and no last linear map."""
    wanted = ours.state_dict()
    weights = {k: v for k, v in theirs.state_dict().items() if k in wanted}
    # OC20's DimeNet++ has a bias more than PyTorch Geometric's.
    zeros = {k: torch.zeros_like(v) for k, v in wanted.items() if k.endswith("lin_up.bias")}
    ours.load_state_dict(zeros | weights | {embedding: weights[embedding][list(elements)]})


def pyg_energies(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Energy and its derivative by positions of the original, and of ours, on ethanol."""
    elements = (1, 6, 8)
    torch.manual_seed(0)
    structure = ethanol()
    batch = Batch.from_structures([structure], CUTOFF, dtype=torch.float64)
    species = torch.searchsorted(torch.tensor(elements), batch.numbers)
    positions = batch.positions.clone().requires_grad_()
    moving = dataclasses.replace(batch, positions=positions)
    if name == "schnet":
        theirs = pyg_reference.schnet(
            hidden_channels=32, num_filters=16, num_interactions=3, num_gaussians=20, cutoff=CUTOFF
        ).double()
        ours = SchNet(SchNetConfig("schnet", CUTOFF, 32, 16, 3, 20), 3).double()
        transfer(theirs, ours, "embedding.weight", elements)
        energy = theirs(batch.numbers, positions).sum()
        found = (
            ours(moving.edge_vec(), batch.edge_index, species).scalars @ theirs.lin2.weight[0] + theirs.lin2.bias
        ).sum()
    else:
        models = geometric.nn.models.dimenet
        shared = {"hidden_channels": 16, "out_channels": 1, "num_blocks": 2, "num_spherical": 4, "num_radial": 3}
        shared |= {"cutoff": CUTOFF, "output_initializer": "glorot_orthogonal"}
        alike = {"cutoff": CUTOFF, "hidden_channels": 16, "n_blocks": 2, "n_spherical": 4, "n_radial": 3}
        monkeypatch.setattr(models, "SphericalBasisLayer", pyg_reference.spherical_basis)
        if name == "dimenet":
            theirs = models.DimeNet(**shared, num_bilinear=8).double()
            ours = DimeNet(DimeNetConfig(**alike, n_bilinear=8, angle_at="end"), 3)
        else:
            theirs = models.DimeNetPlusPlus(**shared, int_emb_size=12, basis_emb_size=8, out_emb_channels=20).double()
            config = DimeNetPlusPlusConfig(**alike, out_emb_channels=20, int_emb_size=12, basis_emb_size=8)
            ours = DimeNetPlusPlus(config, 3)
        ours = ours.double()
        transfer(theirs, ours, "emb.emb.weight", elements)
        readout = torch.cat([block.lin.weight[0] for block in theirs.output_blocks])
        energy = pyg_reference.dimenet_energy(theirs, batch.numbers, positions).sum()
        found = (ours(moving.edge_vec(), batch.edge_index, species).scalars @ readout).sum()
    return [(e.detach(), torch.autograd.grad(e, positions)[0]) for e in (energy, found)]


@pytest.mark.parametrize("name", ["schnet", "dimenet", "dimenet++"])
def test_agrees_with_pytorch_geometric(name, monkeypatch):
    (energy, gradient), (found, found_gradient) = pyg_energies(name, monkeypatch)
    assert abs(energy) > 1e-2
    torch.testing.assert_close(found, energy, rtol=1e-6, atol=0)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()))


# ---- triplets ------------------------------------------------------------------------------------------------------


def numbered_edges(structure: Structure, cutoff: float) -> tuple[Batch, dict[brute_force.Edge, int]]:
    batch = Batch.from_structures([structure], cutoff, dtype=torch.float64)
    (i, j), shift = batch.edge_index.tolist(), batch.edge_shift.tolist()
    return batch, {(a, b, tuple(n)): k for k, (a, b, n) in enumerate(zip(i, j, shift, strict=True))}


SYSTEMS = [
    *testing.example_structures(ELEMENTS),
    Structure(np.array([29]), np.zeros((1, 3)), np.eye(3) * 2.6, np.ones(3, bool)),
]
each_system = pytest.mark.parametrize("structure", SYSTEMS, ids=["cluster", "slab", "bulk", "one atom"])


@each_system
def test_triplets_are_those_of_brute_force(structure):
    cutoff = 3.5
    batch, number = numbered_edges(structure, cutoff)
    assert set(number) == set(brute_force.edges(structure, cutoff))
    expected = {(number[ij], number[jk]) for ij, jk in brute_force.triplets(structure, cutoff)}
    assert len(expected) > 20
    reverse = reverse_edges(batch.edge_vec(), batch.edge_index, len(structure))
    config = DimeNetConfig(cutoff=cutoff, n_spherical=2)
    laid_out = Triplets(batch.edge_vec(), batch.edge_index[0], len(structure), config)
    # Ask the sum over triplets which edges it sees: one channel for each edge.
    radial = torch.zeros(batch.n_edges, 2, 1, dtype=torch.float64)
    radial[:, 0] = np.sqrt(4 * np.pi)
    seen = laid_out.sum(radial, torch.eye(batch.n_edges, dtype=torch.float64))[:, 0]
    torch.testing.assert_close(seen, seen.round())
    seen = seen.round()
    found = {(int(reverse[g]), int(f)) for g, f in seen.nonzero()}
    assert found == expected
    sums = AngularSums(batch.edge_vec(), batch.edge_index[0], len(structure), 1, batch.n_edges)
    separable = sums.each_degree(torch.eye(batch.n_edges, dtype=torch.float64))[:, 0] * np.sqrt(4 * np.pi)
    torch.testing.assert_close(separable, seen, atol=1e-12, rtol=0)


@each_system
@pytest.mark.parametrize("max_neighbors", [None, 7])
def test_pairs_are_found_in_whole_and_in_cut_lists(structure, max_neighbors):
    batch = Batch.from_structures([structure], 3.5, dtype=torch.float64, max_neighbors=max_neighbors)
    center, neighbor = batch.edge_index
    edges = list(zip(center.tolist(), neighbor.tolist(), map(tuple, batch.edge_shift.int().tolist()), strict=True))
    position = {edge: k for k, edge in enumerate(edges)}
    reverse = [position.get((j, i, tuple(-n for n in shift)), k) for k, (i, j, shift) in enumerate(edges)]
    if max_neighbors is None:
        assert reverse_edges(batch.edge_vec(), batch.edge_index, len(structure)).tolist() == reverse
    first, pair = once_per_pair(batch.edge_vec(), batch.edge_index, len(structure))
    assert first[pair].tolist() == [min(k, other) for k, other in enumerate(reverse)]


@each_system
@pytest.mark.parametrize("n_chunks", ["one chunk", "several"])
def test_sums_without_triplets_are_sums_over_triplets(structure, n_chunks, monkeypatch):
    if n_chunks == "several":
        monkeypatch.setitem(forms.FLOATS_AT_A_TIME, "cpu", 1)
        monkeypatch.setattr(padding, "MIN_EDGES_PER_CHUNK", 10)
    cutoff, degrees = 3.5, 7
    batch, number = numbered_edges(structure, cutoff)
    n = batch.n_edges
    x = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.randn(n, degrees, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    each_degree, over_degrees = torch.zeros(n, degrees, 3).double(), torch.zeros(n, 3).double()
    reverse = reverse_edges(batch.edge_vec(), batch.edge_index, len(structure)).tolist()
    for ij, jk in brute_force.triplets(structure, cutoff):
        g, f = reverse[number[ij]], number[jk]
        a, b = -brute_force.vector(structure, ij), brute_force.vector(structure, jk)
        cosine = torch.tensor(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        basis = legendre(degrees, cosine)
        each_degree[g] += basis[:, None] * x[f]
        over_degrees[g] += basis @ y[f]
    sums = AngularSums(batch.edge_vec(), batch.edge_index[0], len(structure), degrees, 3)
    assert (len(sums.pieces) > 1) is (n_chunks == "several" and len(structure) > 1)
    torch.testing.assert_close(sums.each_degree(x), each_degree)
    torch.testing.assert_close(sums.over_degrees(y), over_degrees)


@pytest.mark.parametrize("name", ["dimenet", "dimenet++"])
@each_system
def test_periodic_dimenet_is_pytorch_geometrics_on_brute_force_triplets(name, structure):
    """PyTorch Geometric's own interaction blocks and bases, given all periodic triplets as a list."""
    model = network(name).double()
    batch, number = numbered_edges(structure, CUTOFF)
    species = torch.searchsorted(torch.tensor(ELEMENTS), batch.numbers)
    idx_ji, idx_kj = torch.tensor(
        [(number[ij], number[jk]) for ij, jk in brute_force.triplets(structure, CUTOFF)]
    ).T.contiguous()
    (i, j), vec = batch.edge_index, batch.edge_vec()
    cosine = torch.nn.functional.cosine_similarity(vec[idx_ji], vec[idx_kj], dim=1)  # of i → j with j → k
    r, config = vec.norm(dim=1), model.config
    basis = pyg_reference.spherical_basis(config.n_spherical, config.n_radial, CUTOFF, 5)
    sbf = basis(r, cosine.clamp(-1, 1).acos(), idx_kj)
    rbf = model.rbf(r)
    x = model.emb(species, rbf, i, j)
    expected = [model.output_blocks[0](x, rbf, i, num_nodes=len(species))]
    for block, output in zip(model.interaction_blocks, model.output_blocks[1:], strict=True):
        x = block(x, rbf, sbf, idx_kj, idx_ji)
        expected.append(output(x, rbf, i, num_nodes=len(species)))
    found = model(vec, batch.edge_index, species).scalars.detach()
    assert found.abs().max() > 1e-3
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-5, atol=1e-6 * float(found.abs().max()))


def test_reverse_edges_of_perfect_crystals():
    """Symmetry makes many pairs of the same atoms equally long."""
    for cell in (np.eye(3) * 2.5, 2.0 * (np.ones((3, 3)) - np.eye(3))):
        batch = Batch.from_structures([Structure(np.array([29]), np.zeros((1, 3)), cell, np.ones(3, bool))], 7.0)
        vec = batch.edge_vec()
        reverse = reverse_edges(vec, batch.edge_index, 1)
        torch.testing.assert_close(vec[reverse], -vec)
        assert reverse[reverse].tolist() == list(range(batch.n_edges))


def test_reverse_edges_try_another_direction(monkeypatch):
    edge_vec, edge_index, species = graph(testing.example_structures(ELEMENTS))
    expected = reverse_edges(edge_vec, edge_index, len(species))
    monkeypatch.setattr(angles, "_DIRECTIONS", ((0.0, 0.0, 0.0), angles._DIRECTIONS[0]))
    assert reverse_edges(edge_vec, edge_index, len(species)).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["dimenet", "dimenet++", "gemnet"])
def test_a_list_cut_to_the_nearest_is_refused(name):
    slab = testing.example_structures(ELEMENTS)[1]
    batch = Batch.from_structures([slab], CUTOFF, max_neighbors=5, dtype=torch.float64)
    species = torch.searchsorted(torch.tensor(ELEMENTS), batch.numbers)
    with pytest.raises(InputError, match=r"\d+ of \d+ pairs .* in one direction only.*build the list without max_nei"):
        network(name).double()(batch.edge_vec(), batch.edge_index, species)


def test_triplets_that_do_not_fit_are_estimated(monkeypatch):
    monkeypatch.setattr(memory, "total_memory", lambda device: 1e4)
    with pytest.raises(InputError, match=r"7 atoms with \d+ edges and \d+ triplets needs about .* use smaller batches"):
        network("dimenet").double()(*graph(testing.example_structures(ELEMENTS)[:1]))


def test_memory_of_this_machine_is_known():
    assert 2**28 < memory.total_memory(torch.device("cpu")) < 2**50


# ---- sizes and tables ----------------------------------------------------------------------------------------------


def test_element_table():
    assert sum(CATEGORIES.values()) == 92
    table = element_properties(tuple(range(1, 101)))
    assert table.shape == (100, 92)
    starts = np.cumsum([0, *CATEGORIES.values()])
    per_property = [table[:, a:b].sum(1) for a, b in itertools.pairwise(starts)]
    assert all((count <= 1).all() for count in per_property)
    assert all(
        (count[:96] == 1).all()
        for count, name in zip(per_property, CATEGORIES, strict=True)
        if name in ("group", "period", "block")
    )
    group = table[:, :19].argmax(1)
    assert group[[0, 1, 25, 28, 77, 91]].tolist() == [1, 18, 8, 11, 10, 0]  # H, He, Fe, Cu, Pt; U has no group
    period = table[:, 19:26].argmax(1)
    assert period[[0, 5, 28, 77]].tolist() == [0, 1, 3, 5]
    with pytest.raises(InputError, match=r"ends at Fm \(100\), Lr \(103\) is not in it"):
        element_properties((1, 103))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "gemnet"])
def test_without_pytorch_geometric(name, monkeypatch):
    for module in ("schnet", "dimenet"):
        monkeypatch.setitem(sys.modules, f"torch_geometric.nn.models.{module}", None)
    with pytest.raises(
        InputError, match=r"torch_geometric\S* is not installed; run `pip install 'equicat\[baselines\]'`"
    ):
        network(name)


# ---- scale factors of GemNet ---------------------------------------------------------------------------------------


def test_scales_equalise_variances():
    model = network("gemnet", vectors=True).double()
    graphs = [graph(testing.example_structures(ELEMENTS, seed)) for seed in range(3)]
    before = {name: float(m.factor) for name, m in model.named_modules() if isinstance(m, Scale)}
    assert set(before.values()) == {1.0}
    factors = fit_scales(model, graphs)
    assert set(factors) == set(before)
    assert len(factors) == 3 * 2 + 2 * 3
    assert all(0 < f < 100 and abs(f - 1) > 1e-3 for f in factors.values())
    assert model.scales_fitted
    ratios = {}

    def record(name: str):
        def hook(module: Scale, inputs: tuple, output: torch.Tensor) -> None:
            found, reference = output.var(0).mean(), inputs[1].var(0).mean()
            ratios.setdefault(name, []).append(float(found / reference))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, Scale):
            module.register_forward_hook(record(name))
    with torch.no_grad():
        for g in graphs:
            model(*g)
    for name, found in ratios.items():
        assert 0.5 < np.mean(found) < 2, f"{name}: variance ratios {found}"


def test_scales_travel_with_the_weights():
    model = network("gemnet").double()
    g = graph(testing.example_structures(ELEMENTS))
    fit_scales(model, [g])
    other = build(model.config, ELEMENTS).double()
    other.load_state_dict(model.state_dict())
    assert other.scales_fitted
    torch.testing.assert_close(other(*g).scalars, model(*g).scalars, rtol=0, atol=0)


def test_training_without_scales_is_refused_soon(monkeypatch):
    monkeypatch.setattr(gemnet, "UNFITTED_STEPS", 3)
    model = network("gemnet").double().train()
    g = graph(testing.example_structures(ELEMENTS)[:1])
    for _ in range(3):
        model(*g)
    with pytest.raises(InputError, match="trained for 3 steps without fitted scale factors"):
        model(*g)
    fitted = network("gemnet").double().train()
    fit_scales(fitted, [g])
    assert fitted.training
    for _ in range(5):
        fitted(*g)
    unfitted = network("gemnet").double()
    for _ in range(5):
        unfitted(*g)  # predictions are not training


def test_scales_need_a_signal():
    lonely = Structure(np.array([1, 8]), np.array([[0.0, 0, 0], [50.0, 0, 0]]))
    for graphs in ([], [graph([lonely])]):
        model = network("gemnet").double()
        with pytest.raises(InputError, match=r"cannot fit the scale factor .*no signal passes it"):
            fit_scales(model, graphs)
        assert not model.scales_fitted
        assert all(m.variances is None for m in model.modules() if isinstance(m, Scale))
