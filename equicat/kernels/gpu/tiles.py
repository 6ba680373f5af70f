"""Sizes of the tiles that a program multiplies, and what a GPU has room for."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

HOPPER = 200_000
"""Bytes of shared memory that tell a Hopper from what was before, for which nothing here was tuned or run."""


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes that a program may have: 227 kB on an H100, 163 kB on an A100, 99 kB on most other GPUs."""
    if device.type != "cuda":
        return 1 << 30  # Triton's interpreter
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 48 << 10)


@dataclass(frozen=True)
class Tiles:
    """Sizes of a program's tile of a result, and how it is made."""

    rows: int
    columns: int
    block: int
    """Terms of a sum that are loaded at a time."""
    warps: int
    stages: int
    """Blocks that are on their way at a time."""

    def fitting(self, device: torch.device) -> "Tiles":
        """These tiles with fewer blocks on their way, or smaller blocks, where a GPU has less shared memory."""
        room, tiles = shared_memory(device), self
        while tiles.stages > 1 and tiles.n_bytes > room:
            tiles = replace(tiles, stages=tiles.stages - 1)
        while tiles.block > 16 and tiles.n_bytes > room:
            tiles = replace(tiles, block=tiles.block // 2)
        return tiles

    @property
    def n_bytes(self) -> int:
        """Shared memory of the blocks on their way, each number in float32 or in two halves."""
        return 4 * self.stages * self.block * (self.rows + self.columns)

    def options(self) -> dict[str, Any]:
        """Arguments of a kernel."""
        tile = self.rows, self.columns, self.block
        return {"tile": tile, "num_warps": self.warps, "num_stages": self.stages}
