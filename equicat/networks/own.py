"""Networks and heads that are not part of equicat: ``MODULE:CLASS`` names a class on Python's path.

Everything that knows the networks of :mod:`equicat.networks.catalogue` and the heads of :mod:`equicat.models.heads` by
name knows these as well, and a run that was trained with one keeps the name. **Loading such a run imports the module**,
which is running its code. The name can only be that of a module that Python finds by itself: nothing is taken from the
run's folder, nor from the working directory unless that is on the path (``PYTHONPATH``).
"""

import importlib
from abc import abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from equicat.errors import InputError
from equicat.networks.features import Features
from equicat.options.values import Cutoff, Form, Imported, read_value

FORM = "MODULE:CLASS"
"""A name of this form is that of a class outside of equicat."""
PATTERN = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"
"""All names of that form."""
OwnName = Annotated[str, Form("a name such as my_networks:PairNetwork", PATTERN)]
Base = TypeVar("Base")


@dataclass(frozen=True)
class OwnConfig(Imported, section="model"):
    """Hyperparameters of a network of one's own: a frozen dataclass that derives from this one adds its options.

    ``avg_num_neighbors: float | None = None`` is filled with that of the training data, if there is such a field.
    """

    name: OwnName = FORM
    """Module and class of the network."""
    cutoff: Cutoff = 5.0
    """Distance (Å) up to which two atoms are neighbours."""

    @classmethod
    def find(cls, name: str) -> "type[OwnConfig]":
        """The dataclass of the options of a network.

        Raises:
            InputError: as :func:`find_network`.
        """
        return find_network(name).config_class


class OwnNetwork(nn.Module):
    """Base of networks of one's own: pair vectors and species in, features of pairs or of atoms out.

    A subclass names the dataclass of its options, and its constructor sets ``n_features``.

    Args:
        config: hyperparameters.
        elements: atomic numbers that the model knows, ascending; ``species`` counts them from 0.
    """

    config_class: ClassVar[type[OwnConfig]] = OwnConfig
    strictly_local: ClassVar[bool] = False
    """Whether features depend on the pairs of one centre alone, and on its neighbours' species: no message passing.
    LAMMPS needs it on several ranks."""
    per: Literal["edge", "atom"] = "atom"
    """Whether features are of ordered pairs or of atoms."""
    n_features: int
    """Number of scalar features."""
    n_vectors: int = 0
    """Number of vectors of each pair or atom; 0 for none."""
    floats_per_edge: int = 256
    """The largest intermediate result of one pair, in numbers: how many pairs fit into memory at a time."""

    def __init__(self, config: Any, elements: tuple[int, ...]):
        super().__init__()

    @abstractmethod
    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Features:
        """Features, as smooth functions of the pair vectors that vanish, or stop to change, at the cutoff.

        Args:
            edge_vec: r_j − r_i in Å of every pair within the cutoff, in both directions.
            edge_index: centre i and neighbour j of each pair, sorted by centre.
            species: which element each atom is, as the model counts them.
        """


def find_class(option: str, name: str, base: type[Base]) -> type[Base]:
    """The class that a name such as ``my_networks:PairNetwork`` means; imports its module.

    Args:
        option: which names it, for messages.
        name: module and class.
        base: the class must derive from it.

    Raises:
        InputError: if Python does not find the module, or there is no such class in it.
    """
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"{option} {name}: {module_name} needs the package {error.name}; install it") from error
        raise InputError(
            f"{option} {name}: Python finds no module {error.name}; install it, or let PYTHONPATH name its folder"
        ) from error
    found = vars(module).get(class_name)
    if found is None:
        own = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        others = f"; there are {', '.join(own)}" if own else ""
        raise InputError(f"{option} {name}: no class {class_name} in {module.__file__}{others}")
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{option} {name}: {class_name} must derive from {base.__module__}.{base.__name__}")
    return found


def modules_of(*names: str | None) -> tuple[str, ...]:
    """The modules that names of this form mean, each once; other names, and None, mean none."""
    return tuple(dict.fromkeys(name.partition(":")[0] for name in names if name is not None and ":" in name))


@cache
def find_network(name: str) -> type[OwnNetwork]:
    """The network that a name such as ``my_networks:PairNetwork`` means; imports its module.

    Raises:
        InputError: if Python does not find the module, or there is no such network in it.
    """
    found = find_class("model.name", read_value("model.name", name, OwnName), OwnNetwork)
    if not issubclass(found.config_class, OwnConfig):
        raise InputError(
            f"model.name {name}: config_class must be a dataclass that derives from equicat.networks.own.OwnConfig"
        )
    return found


def build(config: OwnConfig, elements: tuple[int, ...]) -> OwnNetwork:
    """The network of a configuration, untrained.

    Raises:
        InputError: if its constructor did not say how many features there are.
    """
    network = find_network(config.name)(config, elements)
    if not isinstance(vars(network).get("n_features"), int):
        raise InputError(f"model.name {config.name}: the constructor must set self.n_features, a whole number")
    return network
