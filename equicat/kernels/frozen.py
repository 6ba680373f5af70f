"""Keeps what is made of weights that nobody trains, until they have changed."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

Made = TypeVar("Made")
State = list[tuple[int, int]]
"""Address and version of each weight."""


class Frozen(Generic[Made]):
    """Results by module, kept as long as its weights are frozen and stay what they are."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[nn.Module, tuple[State, list[Tensor], Made]] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, weights: Sequence[Float[Tensor, "..."]], make: Callable[[], Made]) -> Made:
        """The result of ``make``, a function of these weights alone.

        Args:
            module: owner of the weights.
            weights: all that ``make`` reads. Addresses and versions tell whether they are what they were; they
                themselves are kept, so that no other ones can come to these addresses.
            make: called unless it is known what it gives.
        """
        if not all(isinstance(w, nn.Parameter) and not w.requires_grad for w in weights):
            return make()
        state = [(w.data_ptr(), w._version) for w in weights]
        known = self._known.get(module)
        if known is None or known[0] != state:
            known = self._known[module] = state, [w.detach() for w in weights], make()
        return known[2]
