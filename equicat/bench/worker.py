"""Our side of `equicat bench`: a potential, with the peer's weights if there are any, in a process of its own."""

import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from equicat.bench.peers import worker
from equicat.data.batch import Batch
from equicat.data.padded import PaddedBatch, padded
from equicat.data.structure import Structure
from equicat.interfaces.nequip_allegro import potential, read_arrays
from equicat.kernels import backend
from equicat.kernels.gpu.graphs import MAX_EDGES, Recorder, padded_sizes
from equicat.models.gradient import ComputeOptions, pair_vectors
from equicat.models.potential import Potential
from equicat.networks.allegro import NequipAllegroConfig

Step = tuple[Float[Tensor, "n_systems"], Float[Tensor, "n_atoms 3"], tuple[Float[Tensor, "..."] | None, ...]]
"""Energies in eV, forces in eV/Å, and the gradient of the loss by each weight."""


class Ours:
    """The model and the systems of a request."""

    recorder: Recorder[PaddedBatch, Step] | None
    """Training steps as CUDA graphs, where they can be recorded."""

    def __init__(self, request: dict[str, Any]):
        start = time.perf_counter()
        compute = ComputeOptions(recompute=request.get("recompute", False), cuda_graphs=request["cuda_graphs"])
        if request["arrays"] is not None:
            model = potential(*read_arrays(Path(request["arrays"])), compute=compute).float()
        else:
            torch.manual_seed(0)
            config, elements = NequipAllegroConfig(**request["config"]), tuple(request["elements"])
            model = Potential(config, elements, (), compute=compute)
        self.model = model.to(request["device"])
        torch.set_float32_matmul_precision("high" if request.get("tf32") else "highest")
        self.trainable = [p for name, p in self.model.named_parameters() if not name.endswith("frequencies")]
        self.setup_s = {"model": worker.seconds_since(start)}
        self.structures = [Structure.from_ase(Atoms(**system)) for system in worker.systems(request["systems"])]
        self.device, start = request["device"], time.perf_counter()
        self.neighbors()
        self.n_edges = self.batch.n_edges
        self.setup_s["neighbors"] = worker.seconds_since(start)

    def neighbors(self) -> None:
        """Neighbour lists and the batch, from structures that have neither."""
        self.batch = Batch.from_structures(self.structures, self.model.cutoff, device=self.device)
        options, self.recorder = self.model.pair_gradients.options, None
        recordable = backend.has_triton(self.batch.positions.device) and self.batch.n_edges <= MAX_EDGES
        if options.cuda_graphs and not options.recompute and recordable:
            self.recorder = Recorder(self._gradient, "a training step")

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's optimisers bring its compiler along: memory that an inference does without."""
        return torch.optim.Adam(self.trainable, lr=1e-9, fused=True)

    def inference(self) -> tuple[Float[Tensor, "n_systems"], Float[Tensor, "n_atoms 3"]]:
        """Energies in eV and forces in eV/Å."""
        self.model.eval().requires_grad_(False)
        with torch.no_grad():
            out = self.model(self.batch)
        return out.energy, out.forces

    def training(self) -> tuple[Float[Tensor, "n_systems"], Float[Tensor, "n_atoms 3"]]:
        """One training step; energies in eV and forces in eV/Å before it."""
        self.model.train()
        for p in self.trainable:
            p.requires_grad_(True)
        if self.recorder is None:
            energy, forces, gradients = self._gradient(self.batch)
        else:
            energy, forces, gradients = self.recorder("the batch", self._filled, lambda batch: None)
        for p, gradient in zip(self.trainable, gradients, strict=True):
            p.grad = gradient
        self.optimizer.step()
        return energy, forces

    def _filled(self) -> PaddedBatch:
        """The batch as `equicat train` fills it up before it records a step."""
        sizes = padded_sizes(len(self.batch.numbers) + 1, self.batch.n_edges)
        return padded(self.batch, pair_vectors(self.batch, slice(None)), *sizes, far=2 * self.model.cutoff)

    def _gradient(self, batch: Batch) -> Step:
        """Energies, forces, and the gradient of the loss by all weights."""
        out = self.model(batch)
        energy, forces = out.energy[: len(self.structures)], out.forces[: len(self.batch.numbers)]
        found = torch.autograd.grad(worker.loss(energy, forces), self.trainable, allow_unused=True)
        # A fused optimiser wants the strides of the weights, and the gradient of a product may be a transpose.
        pairs = zip(self.trainable, found, strict=True)
        gradients = tuple(None if g is None else torch.empty_like(p).copy_(g) for p, g in pairs)
        return energy.detach(), forces.detach(), gradients


class _Products(TorchDispatchMode):
    """Counts the operations of matrix products; PyTorch's own follows modules, which ``grad`` forbids."""

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # brings Triton along, which no other contestant needs

        self.registry, self.flop = flop_registry, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in self.registry:
            self.flop += self.registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def _flop(contestant: Ours, request: dict[str, Any]) -> int:
    """Operations of the matrix products of one call of ``what``."""
    with _Products() as counted:
        {"inference": contestant.inference, "training": contestant.training}[request["what"]]()
    return counted.flop


if __name__ == "__main__":
    worker.serve(Ours, {"flop": _flop})
