"""Our side of `equicat bench`: its training step is one that a fused optimiser on a GPU takes."""

import numpy as np
from ase.build import fcc111

from equicat.bench.speed import our_config
from equicat.bench.worker import Ours


def test_gradients_have_the_strides_of_the_weights(tmp_path):
    """On a GPU, PyTorch's fused Adam refuses others; a processor does not say so."""
    slab = fcc111("Cu", (1, 1, 2), vacuum=6.0)
    slab.pbc = True
    arrays = {"numbers": slab.numbers, "positions": slab.positions, "cell": slab.cell[None], "pbc": slab.pbc[None]}
    np.savez(tmp_path / "systems.npz", n_atoms=[len(slab)], **arrays)
    size = {"layers": 2, "l_max": 1, "scalars": 8, "tensors": 4, "width": 8}
    request = {"arrays": None, "config": our_config(size), "elements": [29], "device": "cpu", "cuda_graphs": True}
    ours = Ours(request | {"systems": str(tmp_path / "systems.npz")})
    ours.training()
    known = [p for p in ours.trainable if p.grad is not None]
    assert len(known) > 5
    for p in known:
        assert p.grad.stride() == p.stride()
