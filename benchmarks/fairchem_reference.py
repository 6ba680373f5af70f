"""Energies, forces and weights of small models of fairchem-core 1.10 on a slab.

They are what tests/networks/baselines/test_fairchem.py compares with.

Run it in an environment of its own, which equicat is not in:

    pip install torch torch_geometric torch_scatter ase lmdb e3nn numba orjson hydra-core submitit pydantic torchtnt \\
        tensorboard wandb huggingface-hub && pip install --no-deps fairchem-core==1.10.0
    PYTHONPATH=OCP python benchmarks/fairchem_reference.py tests/fixtures/fairchem.npz

with OCP a checkout of github.com/FAIR-Chem/fairchem at commit b154639, the last with CGCNN. fairchem 1.10 asks for
torch 2.4, but these models run with later versions. torch_sparse is not needed: what the models use of it is below.
"""

import sys
import types

import numpy as np
import torch
from ase.build import add_adsorbate, fcc111, molecule
from torch import Tensor


class SparseTensor:
    """Rows of a sparse matrix by index: all that these models ask of torch_sparse."""

    def __init__(self, row: Tensor, col: Tensor, value: Tensor, sparse_sizes: tuple[int, int]):
        order = torch.argsort(row * sparse_sizes[1] + col, stable=True)
        self.row, self.col, self.value, self.sizes = row[order], col[order], value[order], sparse_sizes

    def __getitem__(self, index: Tensor) -> "SparseTensor":
        all_counts = torch.bincount(self.row, minlength=self.sizes[0])
        counts, starts = all_counts[index], (all_counts.cumsum(0) - all_counts)[index]
        ends = counts.cumsum(0)
        entries = torch.arange(int(counts.sum())) + (starts - ends + counts).repeat_interleave(counts)
        new = object.__new__(SparseTensor)
        new.row = torch.arange(len(index)).repeat_interleave(counts)
        new.col, new.value, new.sizes = self.col[entries], self.value[entries], (len(index), self.sizes[1])
        return new

    def set_value(self, value: None) -> "SparseTensor":
        return self

    def sum(self, dim: int) -> Tensor:
        return torch.bincount(self.row, minlength=self.sizes[0])

    @property
    def storage(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(row=lambda: self.row, col=lambda: self.col, value=lambda: self.value)


sys.modules["torch_sparse"] = types.ModuleType("torch_sparse")
sys.modules["torch_sparse"].SparseTensor = SparseTensor

# The other models of the old package need old versions of this and that.
import ocpmodels  # noqa: E402

sys.modules["ocpmodels.models"] = types.ModuleType("ocpmodels.models")
sys.modules["ocpmodels.models"].__path__ = [f"{path}/models" for path in ocpmodels.__path__]

from fairchem.core.models.dimenet_plus_plus import DimeNetPlusPlusWrap  # noqa: E402
from fairchem.core.models.gemnet.gemnet import GemNetT  # noqa: E402
from fairchem.core.models.schnet import SchNetWrap  # noqa: E402
from fairchem.core.modules.scaling import ScaleFactor  # noqa: E402
from ocpmodels.models.cgcnn import CGCNN  # noqa: E402
from torch_geometric.data import Batch, Data  # noqa: E402

CUTOFF = 4.5
GEMNET = {
    "num_spherical": 5,
    "num_radial": 12,
    "num_blocks": 2,
    "emb_size_atom": 10,
    "emb_size_edge": 12,
    "emb_size_trip": 6,
    "emb_size_rbf": 4,
    "emb_size_cbf": 3,
    "emb_size_bil_trip": 5,
    "num_before_skip": 1,
    "num_after_skip": 2,
    "num_concat": 1,
    "num_atom": 2,
    "cutoff": CUTOFF,
    "otf_graph": True,
}


def slab() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, positions and cell of CO on a skewed, rattled 2×2×2 Cu slab: atoms see images of themselves."""
    atoms = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    atoms.numbers[::3] = 28
    add_adsorbate(atoms, molecule("CO"), 2.0, "ontop")
    atoms.pbc = True
    atoms.rattle(0.1, seed=0)
    # fairchem makes graphs in single precision whatever the model's: take numbers that it can hold.
    return atoms.numbers, atoms.positions.astype(np.float32), atoms.cell.array.astype(np.float32)


def models() -> dict[str, torch.nn.Module]:
    """Small, their weights random, also those that start at zero or one."""
    shared = {"cutoff": CUTOFF, "otf_graph": True}
    made = {
        "schnet": SchNetWrap(hidden_channels=12, num_filters=8, num_interactions=2, num_gaussians=10, **shared),
        "cgcnn": CGCNN(None, 10, 1, True, True, 8, 2, 6, 2, True, CUTOFF, 10),
        "dimenet++": DimeNetPlusPlusWrap(
            hidden_channels=8, num_blocks=2, int_emb_size=6, basis_emb_size=4, out_emb_channels=7, num_spherical=4,
            num_radial=3, **shared,
        ),
        "gemnet-t": GemNetT(**GEMNET, direct_forces=False),
        "gemnet-dt": GemNetT(**GEMNET, direct_forces=True),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for model in made.values():
        model.eval()
        model.max_neighbors = 500  # the whole graph
        for module in model.modules():
            if isinstance(module, ScaleFactor):
                module.set_(torch.rand((), generator=generator).item() + 0.5)
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad and (not p.any() or (p == 1).all()):
                    p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
    return made


def main(path: str) -> None:
    """Write everything in single precision; names are those of the models' state dictionaries."""
    torch.manual_seed(0)
    numbers, positions, cell = slab()
    arrays = {"numbers": numbers, "positions": positions, "cell": cell, "cutoff": np.array(CUTOFF)}
    for name, model in models().items():
        data = Data(
            pos=torch.tensor(positions), cell=torch.tensor(cell)[None], atomic_numbers=torch.tensor(numbers),
            natoms=torch.tensor([len(numbers)]), tags=torch.zeros(len(numbers), dtype=torch.long),
            pbc=torch.ones(1, 3, dtype=torch.bool),
        )  # fmt: skip
        out = model(Batch.from_data_list([data]))
        energy, forces = out if isinstance(out, tuple) else (out["energy"], out["forces"])
        arrays[f"{name}/energy"] = energy.detach().numpy().reshape(())
        arrays[f"{name}/forces"] = forces.detach().numpy()
        for key, value in model.state_dict().items():
            # Only the rows of the elements that are there.
            rows = value
            if key in ("embedding.weight", "emb.emb.weight"):
                rows = value[sorted(set(numbers.tolist()))]
            elif key == "atom_emb.embeddings.weight":
                rows = value[[z - 1 for z in sorted(set(numbers.tolist()))]]
            arrays[f"{name}/weights/{key}"] = rows.detach().numpy()
        print(f"{name}: energy {float(energy):.6f}, largest force {float(forces.abs().max()):.6f}")
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
