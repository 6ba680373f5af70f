"""One baseline, ours or fairchem 1.10's, as a contestant of baselines_speed.py; each runs where the other is not.

    python benchmarks/baselines_speed_worker.py equicat|fairchem

answers requests, a line of JSON each (`equicat/bench/peers/worker.py`). Energies and forces, float32,
Adam; neighbour lists are made before the timed part.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "equicat" / "bench" / "peers"))
import worker

CUTOFF = 6.0
"""Å."""
MAX_NEIGHBORS = 50
"""The nearest so many neighbours of every atom are kept, as in OC20's graphs."""
CUTS = ("schnet", "cgcnn")
"""Networks of ours that can use such a graph; the others need every pair in both directions."""
Predict = Callable[[], tuple[Tensor, Tensor]]
"""Energies [n_systems] eV and forces [n_atoms, 3] eV/Å."""


def equicat(name: str, systems: list[dict[str, np.ndarray]]) -> tuple[Predict, torch.nn.Module, int, str]:
    """Our network: a function that predicts, its module, the number of edges, and how they were chosen."""
    from equicat.data.batch import Batch
    from equicat.data.structure import Structure
    from equicat.models.model import minus_gradient
    from equicat.networks.baselines.cgcnn import CGCNNConfig
    from equicat.networks.baselines.dimenet import DimeNetPlusPlusConfig
    from equicat.networks.baselines.gemnet import GemNetConfig
    from equicat.networks.baselines.schnet import SchNetConfig
    from equicat.networks.catalogue import NETWORKS

    configs = {
        "schnet-200k": SchNetConfig(),
        "schnet-2M": SchNetConfig(n_interactions=5),
        "cgcnn-200k": CGCNNConfig(),
        "cgcnn-2M": CGCNNConfig(atom_embedding_size=384, n_graph_conv_layers=3),
        "dimenet++-200k": DimeNetPlusPlusConfig(),
        "gemnet-dt": GemNetConfig(),
        "gemnet-t": GemNetConfig(),
    }
    structures = [Structure(s["numbers"], s["positions"], s["cell"], s["pbc"]) for s in systems]
    kept = MAX_NEIGHBORS if configs[name].name in CUTS else None
    batch = Batch.from_structures(structures, CUTOFF, max_neighbors=kept)
    direct = name == "gemnet-dt"
    network = NETWORKS[configs[name].name].build(configs[name], tuple(range(1, 84)), direct)
    model = torch.nn.ModuleDict({"network": network, "energy": torch.nn.Linear(network.n_features, 1, bias=False)})

    def predict() -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(model.training or not direct):
            edge_vec = batch.edge_vec().requires_grad_(not direct)
            features = model["network"](edge_vec, batch.edge_index, batch.numbers - 1)
            atoms = model["energy"](features.scalars)[:, 0]
            energy = atoms.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atoms)
            if direct:
                return energy, features.vectors.sum(2)
            (gradient,) = torch.autograd.grad(energy.sum(), edge_vec, create_graph=model.training)
        return energy, minus_gradient(gradient, batch.edge_index, len(batch.positions))

    return predict, model, batch.n_edges, f"{kept} nearest" if kept else "all"


def _fairchem_models() -> dict[str, Callable[[], torch.nn.Module]]:
    """Models of fairchem 1.10 (CGCNN: of the last OCP), with the hyperparameters published for OC20."""
    import fairchem_reference as reference

    gemnet = {
        "num_spherical": 7, "num_radial": 128, "num_blocks": 3, "emb_size_atom": 512, "emb_size_edge": 512,
        "emb_size_trip": 64, "emb_size_rbf": 16, "emb_size_cbf": 16, "emb_size_bil_trip": 64, "num_before_skip": 1,
        "num_after_skip": 2, "num_concat": 1, "num_atom": 3, "cutoff": CUTOFF,
    }  # fmt: skip
    return {
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


def fairchem(name: str, systems: list[dict[str, np.ndarray]]) -> tuple[Predict, torch.nn.Module, int, str]:
    """fairchem's network: a function that predicts, its module, the number of edges, and how they were chosen."""
    model = _fairchem_models()[name]()
    from fairchem.core.common.utils import radius_graph_pbc
    from torch_geometric.data import Batch, Data

    data = []
    for s in systems:
        item = Data(
            pos=torch.tensor(s["positions"], dtype=torch.float32),
            cell=torch.tensor(s["cell"], dtype=torch.float32)[None],
            atomic_numbers=torch.tensor(s["numbers"]), natoms=torch.tensor([len(s["numbers"])]),
            tags=torch.zeros(len(s["numbers"]), dtype=torch.long), pbc=torch.tensor(s["pbc"])[None],
        )  # fmt: skip
        data.append(item)
    batch = Batch.from_data_list(data)
    batch.edge_index, batch.cell_offsets, batch.neighbors = radius_graph_pbc(batch, CUTOFF, MAX_NEIGHBORS)

    def predict() -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(model.training or name != "gemnet-dt"):
            out = model(batch)
        return out if isinstance(out, tuple) else (out["energy"], out["forces"])

    return predict, model, batch.edge_index.shape[1], f"{MAX_NEIGHBORS} nearest"


class Baseline:
    """The model ``name`` of a request, of the ``package`` given to the program, and the first ``n_systems`` systems."""

    def __init__(self, request: dict[str, Any]):
        torch.manual_seed(0)
        start = time.perf_counter()
        systems = list(worker.systems(request["systems"]))[: request["n_systems"]]
        make = {"equicat": equicat, "fairchem": fairchem}[sys.argv[1]]
        self.predict, self.model, self.n_edges, self.edges = make(request["name"], systems)
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.trainable, 1e-9)
        self.setup_s = {"all": worker.seconds_since(start)}

    def inference(self) -> tuple[Tensor, Tensor]:
        """Energies in eV and forces in eV/Å."""
        self.model.eval()
        return self.predict()

    def training(self) -> tuple[Tensor, Tensor]:
        """One training step; energies in eV and forces in eV/Å before it."""
        self.model.train()
        self.optimizer.zero_grad()
        energy, forces = self.predict()
        worker.loss(energy, forces).backward()
        self.optimizer.step()
        return energy.detach(), forces.detach()


def _about(contestant: Baseline, request: dict[str, Any]) -> dict[str, Any]:
    """The form of the model, and the environment in which it runs."""
    _, forces = contestant.inference()
    return {
        "edges": contestant.edges,
        "parameters": sum(p.numel() for p in contestant.trainable),
        "dtype": str(forces.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _seconds(contestant: Baseline, request: dict[str, Any]) -> float:
    """Seconds of one call; with one thread those of computing, not of waiting, so that other work counts less."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    {"inference": contestant.inference, "training": contestant.training}[request["what"]]()
    return clock() - start


if __name__ == "__main__":
    worker.serve(Baseline, {"about": _about, "seconds": _seconds})
