"""Seconds and memory of a training step and of an inference, for one baseline, on 8 slabs of 38 atoms.

The same script runs ours and fairchem's, each in its own environment (see fairchem_reference.py for fairchem's), so
that both meet the same batch in the same minute:

    OMP_NUM_THREADS=2 python benchmarks/baselines_speed.py equicat dimenet++-200k
    OMP_NUM_THREADS=2 PYTHONPATH=OCP FAIRCHEM_ENV/bin/python benchmarks/baselines_speed.py fairchem dimenet++-200k

fairchem's graphs are cut to the 50 nearest neighbours, as OC20's are; ours are whole (``--max-neighbors`` cuts those of
networks that can use such a list). Energy and forces, float32, Adam; neighbour lists are built outside the timed part.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, fcc111, molecule
from torch import Tensor

METALS = ("Cu", "Ag", "Au", "Pt", "Pd", "Ni", "Al", "Rh")
MODELS = ("schnet-200k", "schnet-2M", "cgcnn-200k", "cgcnn-2M", "dimenet++-200k", "gemnet-dt", "gemnet-t")
CUTOFF = 6.0


def slabs() -> list[Atoms]:
    """Eight rattled 3×3×4 slabs with CO."""
    out = []
    for k, metal in enumerate(METALS):
        atoms = fcc111(metal, (3, 3, 4), vacuum=10.0)
        add_adsorbate(atoms, molecule("CO"), 2.0, "ontop")
        atoms.pbc = True
        atoms.rattle(0.05, seed=k)
        out.append(atoms)
    return out


def ours(name: str, max_neighbors: int | None) -> tuple[Callable[[], tuple[Tensor, Tensor]], torch.nn.Module, int]:
    """A function that predicts energies and forces, its module, and the number of edges."""
    from equicat.batch import Batch
    from equicat.models.cgcnn import CGCNNConfig
    from equicat.models.dimenet import DimeNetPlusPlusConfig
    from equicat.models.gemnet import GemNetConfig
    from equicat.models.networks import NETWORKS
    from equicat.models.schnet import SchNetConfig
    from equicat.potential import minus_gradient
    from equicat.structure import Structure

    configs = {
        "schnet-200k": SchNetConfig(),
        "schnet-2M": SchNetConfig(n_interactions=5),
        "cgcnn-200k": CGCNNConfig(),
        "cgcnn-2M": CGCNNConfig(atom_embedding_size=384, n_graph_conv_layers=3),
        "dimenet++-200k": DimeNetPlusPlusConfig(),
        "gemnet-dt": GemNetConfig(),
        "gemnet-t": GemNetConfig(),
    }
    structures = [Structure(a.numbers, a.positions, a.cell.array, np.ones(3, bool)) for a in slabs()]
    if name == "gemnet-t":
        structures = structures[:2]
    batch = Batch.from_structures(structures, CUTOFF, max_neighbors=max_neighbors)
    elements = tuple(range(1, 84))
    network = NETWORKS[configs[name].name].build(configs[name], elements, name == "gemnet-dt")
    model = torch.nn.ModuleDict({"network": network, "energy": torch.nn.Linear(network.n_features, 1, bias=False)})

    def predict() -> tuple[Tensor, Tensor]:
        direct = name == "gemnet-dt"
        with torch.set_grad_enabled(model.training or not direct):
            edge_vec = batch.edge_vec().requires_grad_(not direct)
            features = model["network"](edge_vec, batch.edge_index, batch.numbers - 1)
            atoms = model["energy"](features.scalars)[:, 0]
            energy = atoms.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atoms)
            if direct:
                return energy, features.vectors.sum(2)
            (gradient,) = torch.autograd.grad(energy.sum(), edge_vec, create_graph=model.training)
        return energy, minus_gradient(gradient, batch.edge_index, len(batch.positions))

    return predict, model, batch.n_edges


def theirs(name: str) -> tuple[Callable[[], tuple[Tensor, Tensor]], torch.nn.Module, int]:
    """The same of fairchem 1.10 (CGCNN: the last OCP)."""
    import fairchem_reference as reference
    from torch_geometric.data import Batch, Data

    gemnet = {
        "num_spherical": 7, "num_radial": 128, "num_blocks": 3, "emb_size_atom": 512, "emb_size_edge": 512,
        "emb_size_trip": 64, "emb_size_rbf": 16, "emb_size_cbf": 16, "emb_size_bil_trip": 64, "num_before_skip": 1,
        "num_after_skip": 2, "num_concat": 1, "num_atom": 3, "cutoff": CUTOFF,
    }  # fmt: skip
    makers = {
        "schnet-200k": lambda: reference.SchNetWrap(True, False, True, False, 1024, 256, 3, 200, CUTOFF),
        "schnet-2M": lambda: reference.SchNetWrap(True, False, True, False, 1024, 256, 5, 200, CUTOFF),
        "cgcnn-200k": lambda: reference.CGCNN(None, 100, 1, True, True, 128, 2, 128, 3, False, CUTOFF, 100),
        "cgcnn-2M": lambda: reference.CGCNN(None, 100, 1, True, True, 384, 3, 128, 3, False, CUTOFF, 100),
        "dimenet++-200k": lambda: reference.DimeNetPlusPlusWrap(
            hidden_channels=192, num_blocks=3, out_emb_channels=192, cutoff=CUTOFF
        ),
        "gemnet-dt": lambda: reference.GemNetT(**gemnet, direct_forces=True),
        "gemnet-t": lambda: reference.GemNetT(**gemnet, direct_forces=False),
    }
    model = makers[name]()
    data = []
    for a in slabs()[: 2 if name == "gemnet-t" else None]:
        item = Data(
            pos=torch.tensor(a.positions, dtype=torch.float32),
            cell=torch.tensor(a.cell.array, dtype=torch.float32)[None],
            atomic_numbers=torch.tensor(a.numbers), natoms=torch.tensor([len(a)]),
            tags=torch.zeros(len(a), dtype=torch.long), pbc=torch.ones(1, 3, dtype=torch.bool),
        )  # fmt: skip
        data.append(item)
    batch = Batch.from_data_list(data)
    from fairchem.core.common.utils import radius_graph_pbc

    batch.edge_index, batch.cell_offsets, batch.neighbors = radius_graph_pbc(batch, CUTOFF, 50)

    def predict() -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(model.training or name != "gemnet-dt"):
            out = model(batch)
        return out if isinstance(out, tuple) else (out["energy"], out["forces"])

    return predict, model, batch.edge_index.shape[1]


def median(step: Callable[[], object], n: int) -> float:
    """Seconds, after two steps that do not count; of computing, not of waiting, with one thread."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = []
    for _ in range(n + 2):
        start = clock()
        step()
        times.append(clock() - start)
    return statistics.median(times[2:])


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=("equicat", "fairchem"))
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each kind")
    parser.add_argument("--max-neighbors", type=int, help="of equicat's graphs; fairchem's are cut to 50")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.package == "equicat":
        predict, model, n_edges = ours(options.model, options.max_neighbors)
    else:
        predict, model, n_edges = theirs(options.model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-5)

    def train() -> None:
        model.train()
        optimizer.zero_grad()
        energy, forces = predict()
        (energy.abs().mean() + forces.abs().mean()).backward()
        optimizer.step()

    def infer() -> None:
        model.eval()
        predict()

    result = {"package": options.package, "model": options.model, "edges": n_edges}
    result["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    result["inference_s"] = median(infer, options.steps)
    result["training_s"] = median(train, options.steps)
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    result["threads"] = torch.get_num_threads()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
