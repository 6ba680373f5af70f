"""Steps whose loss or gradient is not finite: they are skipped, counted, and too many of them end a training."""

import math
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.tasks.metrics import Values

NAMED = 3
"""Structures that a message names."""


def broken_structures(batch: Batch, *values: Values) -> list[str]:
    """Names of the structures with a prediction or label that is not finite.

    Args:
        batch: the structures.
        values: predictions and labels of the batch.
    """
    broken = torch.zeros(batch.n_systems, dtype=torch.bool, device=batch.system_idx.device)
    for value in values:
        of_systems = [v for v in (value.energy, value.stress) if v is not None]
        of_atoms = [v for v in (value.forces, value.displacements) if v is not None]
        for tensor in of_systems:
            broken |= ~tensor.isfinite().reshape(len(tensor), -1).all(1)
        for tensor in of_atoms:
            broken[batch.system_idx[~tensor.isfinite().all(1)]] = True
    names = batch.sources or tuple(f"system {i}" for i in range(batch.n_systems))
    return [names[i] for i in broken.nonzero()[:, 0].tolist()]


class Health:
    """Counts skipped steps, and the structures that were in them.

    Args:
        limit: so many steps may be skipped.
    """

    def __init__(self, limit: int):
        self.limit, self.n_skipped = limit, 0
        self.structures = Counter[str]()
        """How often each structure was in a skipped step of this process."""
        self._reason: str | None = None
        """Reason to skip the step that is under way."""
        self._broken: list[str] = []
        """Structures that are a reason."""

    def see_loss(self, loss: float, where: str, structures: list[str]) -> bool:
        """Look at the loss of a batch, all processes together, before it is differentiated.

        Args:
            loss: of the batch.
            where: the batch, for messages.
            structures: names of those that are broken, or of all if none is by itself.

        Returns:
            Whether it is finite.
        """
        if math.isfinite(loss):
            return True
        self._reason = f"the training loss is {loss} at {where}"
        self._broken += structures
        return False

    def skips(self, is_finite: bool, where: str, structures: list[str]) -> bool:
        """Whether the step is to be skipped, for its loss or its gradient.

        Processes that train together have the same gradient, and decide alike.

        Args:
            is_finite: whether the gradient is.
            where: the batch, for messages.
            structures: names of those of the batch.

        Raises:
            InputError: if more steps than the limit were skipped; it names the structures that were in most of them.
        """
        reason, self._reason = self._reason, None
        if reason is None and not is_finite:
            reason, self._broken = f"the gradient is not finite at {where}", structures
        broken, self._broken = self._broken, []
        if reason is None:
            return False
        self.n_skipped += 1
        self.structures.update(broken)
        often = ", ".join(name for name, _ in self.structures.most_common(NAMED)) or "those of other processes"
        if self.n_skipped > self.limit:
            raise InputError(
                f"{reason}; {self.n_skipped} steps were not finite, more than run.max_skipped_steps, most often with "
                f"the structures {often}; look at their labels, or lower optimizer.lr"
            )
        named = f"; broken: {', '.join(broken[:NAMED])}" if broken else ""
        print(f"warning: a step is skipped: {reason}{named}", file=sys.stderr, flush=True)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"n_skipped": self.n_skipped, "structures": dict(self.structures)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from :meth:`state_dict`."""
        self.n_skipped, self.structures = state["n_skipped"], Counter(state["structures"])


def has_finite_gradient(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether all numbers of all gradients are finite; one look at a device, at their norms."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all())
