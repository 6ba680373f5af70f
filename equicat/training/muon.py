"""Muon for weight matrices, Adam for everything else, as one optimiser.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) replaces the averaged gradient of a matrix by the nearest
orthogonal matrix, so that all directions in which it acts are learned at the same pace. On forces near a minimum, where
a few directions dominate the gradient, it reached in 5 minutes what Adam took 11 for (benchmarks/LOG.md).
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

MIN_WIDTH = 8
"""Matrices narrower than this are left to Adam."""
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients of the odd polynomials that take singular values towards 1 (Jordan et al.)."""


def orthogonalized(matrix: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Roughly U Vᵀ of the singular value decomposition U S Vᵀ: singular values of about 0.7 to 1.2."""
    x = matrix / (matrix.norm() + 1e-7)
    transposed = len(x) > x.shape[1]
    x = x.t() if transposed else x
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.t() if transposed else x


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum for matrices, Adam for the rest.

    Args:
        parameters: matrices at least ``MIN_WIDTH`` wide, [n_in, n_out], go to Muon.
        lr: of Adam.
        matrix_lr: of Muon: about the size of a singular value of the step.
        momentum: of Muon.
        betas: of Adam.
        weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        matrix_lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ):
        parameters = [p for p in parameters if p.requires_grad]
        matrices = [p for p in parameters if p.ndim == 2 and min(p.shape) >= MIN_WIDTH]
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        groups: list[dict[str, Any]] = [
            {"params": rest, "lr": lr, "muon": False},
            {"params": matrices, "lr": matrix_lr, "muon": True},
        ]
        defaults = {"momentum": momentum, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` as in every PyTorch optimiser."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon if group["muon"] else adam_step
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    update(p, p.grad, self.state[p], group)
        return loss

    @staticmethod
    def _muon(p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        direction = orthogonalized(grad.lerp(momentum, group["momentum"]))
        # Tall matrices sum many inputs, whose errors then partly cancel.
        p.add_(direction, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))


def adam_step(p: Float[Tensor, "*shape"], grad: Float[Tensor, "*shape"], state: dict[str, Any], group: dict[str, Any]) -> None:
    """A step of Adam with ``betas`` and ``lr`` of the group; ``state`` is the parameter's, empty before its first."""
    if not state:
        state["step"], state["mean"], state["square"] = 0, torch.zeros_like(p), torch.zeros_like(p)
    beta1, beta2 = group["betas"]
    state["step"] += 1
    mean = state["mean"].lerp_(grad, 1 - beta1)
    square = state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    size = group["lr"] / (1 - beta1 ** state["step"])
    p.addcdiv_(mean, (square / (1 - beta2 ** state["step"])).sqrt_().add_(1e-8), value=-size)
