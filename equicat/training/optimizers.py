"""The optimiser of a training run and its schedule."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam or Muon, a schedule, an average of the weights."""

    name: Literal["adam", "muon"] = "adam"
    """adam; or muon, which orthogonalises the steps of weight matrices and leaves the rest to Adam."""
    lr: float = 2e-3
    """Learning rate (of Adam)."""
    matrix_lr: float = 0.01
    """Learning rate of Muon, of the weight matrices."""
    schedule: Literal["plateau", "cosine", "milestones", "constant"] = "plateau"
    """plateau lowers the rate when val_loss stalls; cosine takes it to 1% over max_epochs or max_minutes; milestones
    lowers it at given steps."""
    warmup_steps: int = 0
    """Linear warm-up of the rate (all but plateau)."""
    warmup_from: float = 0.0
    """Share of the rate at which the warm-up starts."""
    milestones: tuple[int, ...] = ()
    """Steps at which the rate is lowered (milestones)."""
    milestone_factor: float = 0.1
    """What a milestone multiplies the rate with."""
    plateau_factor: float = 0.8
    """What a plateau multiplies the rate with."""
    plateau_patience: int = 5
    """Validations without a better val_loss before that."""
    ema_decay: float | None = 0.99
    """Exponential moving average of the weights, used for validation and saved; null turns it off."""
    gradient_clip: float | None = 10.0
    """Largest norm of the gradient; null turns it off."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW)."""
    amsgrad: bool = False
    """Adam with the largest second moment so far (Reddi et al. 2018)."""
