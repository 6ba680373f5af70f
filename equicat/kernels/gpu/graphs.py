"""CUDA graphs: an inference of a small system as one launch instead of hundreds.

On a GPU a system of some hundred atoms takes about as long as launching its kernels one after the other. A graph is
launched at once, but it repeats what was recorded: the same shapes at the same addresses. So atoms and edges are
filled up to sizes that grow in steps of at most a quarter, and each pair of sizes that is met is recorded once. Edges
that fill up are longer than any cutoff and contribute nothing; they belong to atoms of their own, a few to each, so
that no program of a kernel has more of them than of others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Inputs = tuple[Float[Tensor, "n_edges 3"], Int[Tensor, "2 n_edges"], Int[Tensor, "n_atoms"]]
"""Pair vectors [n_edges, 3], edge_index [2, n_edges] and species [n_atoms]."""
Outputs = tuple[Float[Tensor, "n_centers"], Float[Tensor, "n_edges 3"]]
"""Energies [n_atoms], and their derivatives by pair vectors [n_edges, 3]."""
Function = Callable[[Float[Tensor, "n_edges 3"], Int[Tensor, "2 n_edges"], Int[Tensor, "n_atoms"]], Outputs]

MAX_EDGES = 1 << 17
"""Systems with more edges are not recorded: they keep a GPU busy by themselves."""
MAX_GRAPHS = 32
"""Number of graphs kept, each of which holds the memory of an inference."""
FILL = 128
"""One atom is added for so many edges, of which at most a quarter are added: an added atom has at most 32 edges."""


def padded_size(n: int) -> int:
    """The next of 1, 2, …, 8, 10, 12, 14, 16, 20, …: at most a quarter more."""
    step = 1 << max((n - 1).bit_length() - 3, 0)
    return -(-n // step) * step


def record(function: Function, inputs: Inputs) -> tuple[Callable[[], None], Outputs]:
    """Record a CUDA graph of ``function``, which must neither wait for the GPU nor copy to it.

    Returns:
        A function that computes ``function`` of the inputs' present contents and writes the outputs; and the outputs.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # compiling, allocating and copying constants to the GPU at first use must not be recorded
            function(*inputs)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*inputs)
    return graph.replay, outputs


@dataclass(frozen=True, eq=False)
class _Recorded:
    """A graph: write ``inputs``, call ``replay``, read ``outputs``."""

    inputs: Inputs
    replay: Callable[[], None]
    outputs: Outputs


class Graphs:
    """A function of edges and atoms, recorded for each pair of padded sizes that it is called with.

    Args:
        function: strictly local; a pair vector of the length ``far`` contributes nothing, and its derivative is 0.
        far: Å, longer than any cutoff.
    """

    def __init__(self, function: Function, far: float):
        self.function, self.far = function, far
        self.recorded: dict[tuple[int, int], _Recorded] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "Graphs":
        """A copy without recordings: graphs stay with the model that they were recorded for."""
        return Graphs(self.function, self.far)

    def __call__(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]:
        """The results of ``function``, in new memory.

        Args:
            edge_vec: Å.
            edge_index: sorted by centre.
            species: of atoms.
        """
        n_atoms, n_edges = len(species), len(edge_vec)
        edges = padded_size(n_edges)
        sizes = padded_size(n_atoms + -(-edges // FILL)), edges
        if sizes not in self.recorded:
            if len(self.recorded) == MAX_GRAPHS:
                self.recorded.clear()
            inputs = edge_vec.new_empty(edges, 3), edge_index.new_empty(2, edges), species.new_empty(sizes[0])
            self._fill(inputs, edge_vec, edge_index, species)
            self.recorded[sizes] = _Recorded(inputs, *record(self.function, inputs))
        found = self.recorded[sizes]
        self._fill(found.inputs, edge_vec, edge_index, species)
        found.replay()
        by_atom, by_edge = found.outputs
        return by_atom[:n_atoms].clone(), by_edge[:n_edges].clone()

    def _fill(self, inputs: Inputs, edge_vec: Tensor, edge_index: Tensor, species: Tensor) -> None:
        """Write edges and atoms into the inputs of a graph, and fill up the rest."""
        (vectors, index, kinds), n_atoms, n_edges = inputs, len(species), len(edge_vec)
        vectors[:n_edges], index[:, :n_edges], kinds[:n_atoms] = edge_vec, edge_index, species
        kinds[n_atoms:], vectors[n_edges:] = 0, 0
        vectors[n_edges:, 0] = self.far
        more_edges, more_atoms = len(vectors) - n_edges, len(kinds) - n_atoms
        if more_edges:
            added = torch.arange(more_edges, device=index.device) * more_atoms
            index[:, n_edges:] = n_atoms + torch.div(added, more_edges, rounding_mode="floor")
