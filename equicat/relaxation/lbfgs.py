"""L-BFGS on many systems at once, step for step as ASE's ``LBFGS`` does it for one (without a line search).

The inverse Hessian is built from the last steps s and changes of the gradient y (Nocedal and Wright, Numerical
Optimization, algorithm 7.4), starting from 1/alpha. A step is shortened so that no atom moves further than
``max_step``. Each system has a history of its own; a pair that a system does not have is zero, and so is its ρ.

On a CPU the recursion goes from pair to pair, in C++ where there is a compiler. On a GPU that would be hundreds
of launches, so there its two loops are solved as what they are, triangular systems of equations (Byrd, Nocedal and
Schnabel, Math. Program. 63, 129, 1994).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from equicat.errors import InputError
from equicat.kernels.cpu.relaxation import native
from equicat.relaxation.layout import Change, Layout


@dataclass(frozen=True)
class LBFGS:
    """Settings of the optimiser; :data:`PRESETS` has those of OC20 and of ASE."""

    memory: int = 50
    """Steps that the history keeps."""
    max_step: float = 0.04
    """Å; the furthest that an atom moves in one step."""
    damping: float = 1.0
    """Factor on each step."""
    alpha: float = 70.0
    """eV/Å²; the curvature that is assumed before any is known."""

    def __post_init__(self) -> None:
        if self.memory < 1 or self.max_step <= 0 or self.damping <= 0 or self.alpha <= 0:
            raise InputError(f"{self}: memory, max_step, damping and alpha must be positive")

    def init(self, layout: Layout, like: Float[Tensor, "n_atoms 3"]) -> "LBFGSState":
        """See :func:`lbfgs_init`."""
        return lbfgs_init(layout, like)

    def step(
        self,
        state: "LBFGSState",
        positions: Float[Tensor, "n_atoms 3"],
        forces: Float[Tensor, "n_atoms 3"],
        layout: Layout,
    ) -> tuple["LBFGSState", Float[Tensor, "n_atoms 3"]]:
        """See :func:`lbfgs_step`."""
        return lbfgs_step(self, state, positions, forces, layout)


PRESETS = {"oc20": LBFGS(), "ase": LBFGS(memory=100, max_step=0.2)}
"""``oc20``: what OC20's relaxations with models use; ``ase``: the defaults of ``ase.optimize.LBFGS``."""


@dataclass(frozen=True, eq=False)
class LBFGSState:
    """State of the optimiser for all systems. The newest pair of the history comes first."""

    steps: Float[Tensor, "n_pairs n_atoms 3"]
    """s, Å."""
    changes: Float[Tensor, "n_pairs n_atoms 3"]
    """y, the changes of the gradient, eV/Å."""
    rho: Float[Tensor, "n_pairs n_systems"]
    """ρ = 1 / (s·y); 0 for a pair that the system does not have."""
    positions: Float[Tensor, "n_atoms 3"]
    """Positions at the step before, Å."""
    forces: Float[Tensor, "n_atoms 3"]
    """Forces at the step before, eV/Å."""
    started: Bool[Tensor, "n_systems"]
    """Whether the system has made a step."""

    def changed(self, change: Change) -> "LBFGSState":
        """The state after some systems have left and others, without a history, have come."""
        rho = change.of_systems(self.rho, axis=1)
        found = (rho != 0).any(1).nonzero()
        n = int(found[-1]) + 1 if len(found) else 0  # pairs older than any system that stays are dropped
        return LBFGSState(
            change.of_atoms(self.steps[:n], axis=1),
            change.of_atoms(self.changes[:n], axis=1),
            rho[:n],
            change.of_atoms(self.positions),
            change.of_atoms(self.forces),
            change.of_systems(self.started),
        )


def lbfgs_init(layout: Layout, like: Float[Tensor, "n_atoms 3"]) -> LBFGSState:
    """The state before the first step, with the dtype and device of ``like``."""
    history, zeros = like.new_zeros(0, layout.n_atoms, 3), torch.zeros_like(like)
    started = torch.zeros(layout.n_systems, dtype=torch.bool, device=like.device)
    return LBFGSState(history, history, like.new_zeros(0, layout.n_systems), zeros, zeros, started)


def lbfgs_step(
    config: LBFGS,
    state: LBFGSState,
    positions: Float[Tensor, "n_atoms 3"],
    forces: Float[Tensor, "n_atoms 3"],
    layout: Layout,
) -> tuple[LBFGSState, Float[Tensor, "n_atoms 3"]]:
    """One step of every system.

    Args:
        config: settings.
        state: after the step before.
        positions: Å.
        forces: at these positions, zero along what is held, eV/Å.
        layout: of the systems.

    Returns:
        The new state, and the next positions.
    """
    state = _with_newest_pair(config, state, positions, forces, layout)
    direction = _direction(config, state, forces, layout)
    longest = layout.largest(direction)
    scale = torch.where(longest >= config.max_step, config.max_step / longest, 1.0)
    return state, positions + direction * layout.by_atom(scale) * config.damping


def _with_newest_pair(
    config: LBFGS,
    state: LBFGSState,
    positions: Float[Tensor, "n_atoms 3"],
    forces: Float[Tensor, "n_atoms 3"],
    layout: Layout,
) -> LBFGSState:
    started = layout.by_atom(state.started)
    s = torch.where(started, positions - state.positions, 0.0)
    y = torch.where(started, state.forces - forces, 0.0)
    # No pair of the first step, and none of a step that changed nothing.
    product = layout.dot(s, y)
    rho, is_pair = torch.where(product != 0, 1 / product, 0.0), layout.by_atom(product != 0)
    s, y = torch.where(is_pair, s, 0.0), torch.where(is_pair, y, 0.0)
    older = slice(config.memory - 1)
    return LBFGSState(
        torch.cat([s[None], state.steps[older]]),
        torch.cat([y[None], state.changes[older]]),
        torch.cat([rho[None], state.rho[older]]),
        positions,
        forces,
        torch.ones_like(state.started),
    )


def _direction(
    config: LBFGS, state: LBFGSState, forces: Float[Tensor, "n_atoms 3"], layout: Layout
) -> Float[Tensor, "n_atoms 3"]:
    """−H g, H the approximate inverse Hessian, by the fastest of the ways that give it."""
    if (steps := native(forces)) is not None:
        history = (state.steps, state.changes, state.rho)
        return steps.direction(layout.first_coordinate, *history, forces, config.alpha)
    by_operators = _by_recursion if forces.device.type == "cpu" else _by_equations
    return by_operators(config, state, forces, layout)


def _by_recursion(
    config: LBFGS, state: LBFGSState, forces: Float[Tensor, "n_atoms 3"], layout: Layout
) -> Float[Tensor, "n_atoms 3"]:
    """−H g by the two-loop recursion, as the book has it."""
    pairs = list(zip(state.steps, state.changes, state.rho, strict=True))
    q, coefficients = -forces, []
    for s, y, rho in pairs:  # from the newest
        a = rho * layout.dot(s, q)
        q.addcmul_(layout.by_atom(a), y, value=-1)
        coefficients.append(a)
    z = q / config.alpha
    for (s, y, rho), a in zip(reversed(pairs), reversed(coefficients), strict=True):
        z.addcmul_(layout.by_atom(a - rho * layout.dot(y, z)), s)
    return -z


def _by_equations(
    config: LBFGS, state: LBFGSState, forces: Float[Tensor, "n_atoms 3"], layout: Layout
) -> Float[Tensor, "n_atoms 3"]:
    """−H g as :func:`_by_recursion` has it, in two dozen operators.

    With M_ij = s_i·y_j for pairs i not newer than j, the first loop solves M a = Sᵀg for its coefficients. The second
    one solves Mᵀc = D a − Yᵀz for those of the steps, D being the diagonal of M.
    """
    s, y, g = (layout.padded(values) for values in (state.steps, state.changes, -forces[None]))
    present = (state.rho != 0).t()
    products = (s @ y.mT).tril() + torch.diag_embed((~present).to(s.dtype))
    a = torch.linalg.solve_triangular(products, s @ g.mT, upper=False)
    z = (g - a.mT @ y) / config.alpha
    curvature = torch.where(present, products.diagonal(dim1=1, dim2=2), 0.0)[:, :, None]
    c = torch.linalg.solve_triangular(products.mT, curvature * a - y @ z.mT, upper=True)
    return -layout.unpadded(z + c.mT @ s)[0]
