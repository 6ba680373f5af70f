"""The costliest step of a layer, with first and second derivatives written out.

``O = ((Y m) ∘ w) W``: harmonics of an edge times the matrix of its centre, weighted path by path, then paths and
channels mixed. Autograd would keep the large intermediate of each factor, and again in each derivative; here only the
four inputs are kept and the intermediate is made anew.

O is linear in each of its inputs. So the derivative of its gradients in a direction (h_Y, h_m, h_w) is the gradient of
its own derivative in that direction: of ⟨g_O, Ṫ W⟩, where T = (Y m) ∘ w and Ṫ = (h_Y m + Y h_m) ∘ w + (Y m) ∘ h_w.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def contract_and_mix(
    y: Float[Tensor, "n_atoms n_max dim_in"],
    m: Float[Tensor, "n_atoms dim_in columns"],
    w: Float[Tensor, "n_atoms n_max rows"],
    mix: Float[Tensor, "rows channels"],
) -> Float[Tensor, "n_atoms n_max dim_out channels"]:
    """((y m) ∘ w) mix, where rows = n_paths × channels and columns = dim_out × rows; differentiable twice."""
    n_atoms, n_max, _ = y.shape
    return _Contract.apply(y, m, w, mix).view(n_atoms, n_max, -1, mix.shape[1])


def contract_and_mix_plain(y: Tensor, m: Tensor, w: Tensor, mix: Tensor) -> Tensor:
    """The same by autograd; the oracle."""
    product = (y @ m).unflatten(2, (-1, w.shape[2]))
    return (product * w[:, :, None]) @ mix


def _times(rows: Tensor, w: Tensor) -> Tensor:
    """[n, k, d·r] ∘ [n, k, r], in place, as [n·k, d, r]."""
    return rows.view(w.shape[0] * w.shape[1], -1, w.shape[2]).mul_(w.reshape(-1, 1, w.shape[2]))


class _Contract(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, m: Tensor, w: Tensor, mix: Tensor) -> Tensor:
        ctx.save_for_backward(y, m, w, mix)
        return _times(torch.bmm(y, m), w).flatten(0, 1) @ mix

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, m, w, mix = ctx.saved_tensors
        grad_y, grad_m, grad_w = _ContractBackward.apply(grad, y, m, w, mix)
        grad_mix = None
        if ctx.needs_input_grad[3]:
            # Never differentiated again: weights are trained by first derivatives of the loss.
            grad_mix = _times(torch.bmm(y, m), w).flatten(0, 1).t() @ grad
        return grad_y, grad_m, grad_w, grad_mix


class _ContractBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, y: Tensor, m: Tensor, w: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(grad, y, m, w, mix)
        n_atoms, n_max, rows = w.shape
        grad_t = (grad @ mix.t()).view(n_atoms * n_max, -1, rows)
        product = torch.bmm(y, m).view_as(grad_t)
        grad_w = product.mul_(grad_t).sum(1).view_as(w)
        grad_s = grad_t.mul_(w.reshape(-1, 1, rows)).view(n_atoms, n_max, -1)
        return torch.bmm(grad_s, m.transpose(1, 2)), torch.bmm(y.transpose(1, 2), grad_s), grad_w

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, h_y: Tensor, h_m: Tensor, h_w: Tensor) -> tuple[Tensor | None, ...]:
        grad, y, m, w, mix = ctx.saved_tensors
        n_atoms, n_max, rows = w.shape
        shape = (n_atoms * n_max, -1, rows)
        flat_w, flat_h = w.reshape(-1, 1, rows), h_w.reshape(-1, 1, rows)
        grad_t = (grad @ mix.t()).view(shape)
        s_dot = torch.baddbmm(torch.bmm(h_y, m), y, h_m).view(shape)
        to_w = (grad_t * s_dot).sum(1).view_as(w)
        t_dot = s_dot.mul_(flat_w).addcmul_(torch.bmm(y, m).view(shape), flat_h).flatten(0, 1)
        to_grad, to_mix = t_dot @ mix, t_dot.t() @ grad
        with_h = (grad_t * flat_h).view(n_atoms, n_max, -1)
        with_w = grad_t.mul_(flat_w).view(n_atoms, n_max, -1)
        to_y = torch.baddbmm(torch.bmm(with_w, h_m.transpose(1, 2)), with_h, m.transpose(1, 2))
        to_m = torch.baddbmm(torch.bmm(h_y.transpose(1, 2), with_w), y.transpose(1, 2), with_h)
        return to_grad, to_y, to_m, to_w, to_mix
