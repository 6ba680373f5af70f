"""The output of every network, which is all that heads read."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """Learned features of every ordered pair (``per="edge"``) or of every atom (``per="atom"``)."""

    scalars: Float[Tensor, "n n_features"]
    per: Literal["edge", "atom"]
    vectors: Float[Tensor, "n 3 n_vectors"] | None = None
    """Polar vectors (l = 1, odd), if the network makes some; they turn and reflect with the system."""
