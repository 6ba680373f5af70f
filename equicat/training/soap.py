"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, for weight matrices; Adam for everything else.

Vyas et al. 2024, arXiv 2409.11321, algorithm 3. For a matrix with gradients G, averages of G Gᵀ and Gᵀ G are kept, and
their eigenvectors Q_L and Q_R. Adam's second moment is that of Q_Lᵀ G Q_R, and so is the step, which is turned back.
As a matrix and its gradients are turned, by orthogonal matrices on both sides, the steps turn with them, which those of
Adam do not.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from equicat.training.muon import EPS, MIN_WIDTH, adam_steps, evaluated

BETAS = (0.95, 0.95)
"""Decay of both moments and of the preconditioner, the paper's."""
REFRESH = 10
"""Steps between two corrections of the eigenvectors, the paper's."""


class Soap(torch.optim.Optimizer):
    """SOAP for matrices, Adam for the rest.

    Args:
        parameters: matrices at least ``MIN_WIDTH`` wide go to SOAP.
        lr: of both.
        weight_decay: decoupled, of both.
        refresh: steps between two corrections of the eigenvectors.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, refresh: int = REFRESH
    ):
        defaults = {"lr": lr, "weight_decay": weight_decay, "betas": BETAS, "refresh": refresh}
        super().__init__([p for p in parameters if p.requires_grad], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure`` as in every PyTorch optimiser."""
        loss = evaluated(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if p.ndim == 2 and min(p.shape) >= MIN_WIDTH:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                        _soap_step(p, p.grad, self.state[p], group)
                    else:
                        adam_steps([p], [p.grad], [self.state[p]], group)
        return loss


def _soap_step(p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """The step of one matrix; the first one only finds eigenvectors, so that no gradient is turned by its own."""
    beta1, beta2 = group["betas"]
    products = grad @ grad.t(), grad.t() @ grad
    if not state:
        state["step"], state["mean"], state["square"] = 0, torch.zeros_like(p), torch.zeros_like(p)
        state["products"] = [(1 - beta2) * product for product in products]
        state["vectors"] = [torch.linalg.eigh(product)[1].flip(1) for product in products]
        return
    left, right = state["vectors"]
    state["step"] += 1
    mean = state["mean"].lerp_(grad, 1 - beta1)
    turned = left.t() @ grad @ right
    square = state["square"].mul_(beta2).addcmul_(turned, turned, value=1 - beta2)
    root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(EPS)
    direction = left @ ((left.t() @ mean @ right) / root) @ right.t()
    p.add_(direction, alpha=-group["lr"] / (1 - beta1 ** state["step"]))
    for average, product in zip(state["products"], products, strict=True):
        average.lerp_(product, 1 - beta2)
    if state["step"] % group["refresh"] == 0:
        for axis in (0, 1):
            _refresh(state, axis)


def _refresh(state: dict[str, Any], axis: int) -> None:
    """Eigenvectors after one step of power iteration and QR (algorithm 4), the largest first; moments go with them."""
    average, vectors = state["products"][axis], state["vectors"][axis]
    order = torch.argsort(_quotients(average, vectors), descending=True)
    state["square"] = state["square"].index_select(axis, order)
    state["vectors"][axis] = torch.linalg.qr(average @ vectors[:, order])[0]


def _quotients(matrix: Float[Tensor, "n n"], vectors: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """vᵀ M v of every column v: estimates of the eigenvalues."""
    return (vectors * (matrix @ vectors)).sum(0)
