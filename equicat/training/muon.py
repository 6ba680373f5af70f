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
EPS = 1e-8
"""Adam adds this to the root of its second moment."""
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients of the odd polynomials that take singular values towards 1 (Jordan et al.)."""


def orthogonalized(matrices: Float[Tensor, "*some n m"]) -> Float[Tensor, "*some n m"]:
    """Roughly U Vᵀ of the singular value decomposition U S Vᵀ: singular values of about 0.7 to 1.2; each on its own."""
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    transposed = x.shape[1] > x.shape[2]
    x = x.mT if transposed else x
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if transposed else x).reshape(matrices.shape)


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
        loss = evaluated(closure)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                update = self._muon if group["muon"] else adam_steps
                update(parameters, [p.grad for p in parameters], [self.state[p] for p in parameters], group)
        return loss

    @staticmethod
    def _muon(parameters: list[Tensor], gradients: list[Tensor], states: list[dict], group: dict[str, Any]) -> None:
        """Move matrices, those of one shape at a time."""
        for state, p in zip(states, parameters, strict=True):
            if not state:
                state["momentum"] = torch.zeros_like(p)
        momenta = [state["momentum"] for state in states]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        averages = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[int]] = {}
        for k, p in enumerate(parameters):
            by_shape.setdefault(p.shape, []).append(k)
        for (n_in, n_out), members in by_shape.items():
            directions = orthogonalized(torch.stack([averages[k] for k in members]))
            # Tall matrices sum many inputs, whose errors then partly cancel.
            size = group["lr"] * math.sqrt(max(1.0, n_in / n_out))
            torch._foreach_sub_([parameters[k] for k in members], (directions * size).unbind())


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The loss of an optimiser's closure, which differentiates it; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def adam_steps(
    parameters: list[Float[Tensor, "..."]],
    gradients: list[Float[Tensor, "..."]],
    states: list[dict[str, Any]],
    group: dict[str, Any],
) -> None:
    """Steps of Adam with ``betas``, ``lr`` and the decoupled ``weight_decay`` of the group, in one launch on a GPU.

    Nothing is computed on the host, so that the steps can be recorded as a CUDA graph if ``lr`` is a tensor.

    Args:
        parameters: to be moved.
        gradients: theirs.
        states: of each parameter, empty before its first step.
        group: options.
    """
    for state, p in zip(states, parameters, strict=True):
        if not state:
            state["step"], state["mean"], state["square"] = 0, torch.zeros_like(p), torch.zeros_like(p)
        # Checkpoints have it on the processor, those of earlier versions as an integer.
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=p.device)
    steps, means, squares = ([state[name] for state in states] for name in ("step", "mean", "square"))
    torch._foreach_add_(steps, 1)
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        *(parameters, gradients, means, squares, [], steps),
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )
