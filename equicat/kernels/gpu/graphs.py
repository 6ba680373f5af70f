"""CUDA graphs: an inference, or a training step, of a small system as one launch instead of hundreds.

On a GPU a system of some hundred atoms takes about as long as launching its kernels one after the other. A graph is
launched at once, but it repeats what was recorded: the same shapes at the same addresses. So atoms and edges are
filled up to sizes that grow in steps of at most a quarter (large ones of an eighth or less), and sizes that are met a
second time are recorded. Edges that fill up are longer than any cutoff and contribute nothing; they belong to atoms of
their own, a few to each, so that no program of a kernel has more of them than of others.
"""

import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.kernels.edges import Edges
from equicat.kernels.products import SPLIT

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")

MAX_EDGES = 1 << 17
"""Systems with more edges are not recorded: they keep a GPU busy by themselves."""
MAX_GRAPHS = 32
"""Number of graphs kept by a :class:`Recorder`. They share the memory of what they compute; each has its own inputs."""
FILL = 128
"""One atom is added for so many edges, of which at most a quarter are added: an added atom has at most 32 edges."""


MAX_STEP = 4096
"""Larger sizes grow by this: a GPU takes longer for what is added there than launches take."""


def padded_size(n: int) -> int:
    """The next of 1, 2, …, 8, 10, 12, 14, 16, 20, …, 32768, 36864, …: at most a quarter more, or :data:`MAX_STEP`."""
    step = min(1 << max((n - 1).bit_length() - 3, 0), MAX_STEP)
    return -(-n // step) * step


def padded_sizes(n_atoms: int, n_edges: int) -> tuple[int, int]:
    """Numbers of atoms and edges that a system is filled up to."""
    edges = padded_size(n_edges)
    return padded_size(n_atoms + -(-edges // FILL)), edges


class Room:
    """The memory that several graphs share, and the stream that they are recorded on; made when first needed.

    Graphs may share memory because nothing that one leaves there is read after another one is launched but its outputs,
    and whoever launches a graph has read these by then.
    """

    @cached_property
    def stream(self) -> Any:
        """The stream on which functions are warmed up and recorded."""
        return torch.cuda.Stream()

    @cached_property
    def pool(self) -> Any:
        """The name of the memory."""
        return torch.cuda.graph_pool_handle()


def warmed_up(function: Callable[[Inputs], Outputs], inputs: Inputs, room: Room) -> Outputs:
    """``function`` of the inputs, computed where it is going to be recorded.

    Compiling, allocating and copying constants to the GPU at first use happen here, for they must not be recorded.
    """
    room.stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(room.stream):
        outputs = function(inputs)
    torch.cuda.current_stream().wait_stream(room.stream)
    return outputs


def record(function: Callable[[Inputs], Outputs], inputs: Inputs, room: Room) -> tuple[Callable[[], None], Outputs]:
    """Record a CUDA graph of ``function``, which must neither wait for the GPU nor copy to it. Nothing is computed.

    Returns:
        A function that computes ``function`` of the inputs' present contents and writes the outputs; and the outputs.

    Raises:
        RuntimeError: if it cannot be recorded.
    """
    room.stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    # Threads that read data may go on: they neither launch anything on this stream nor write what is read here.
    recording = torch.cuda.graph(graph, room.pool, room.stream, capture_error_mode="thread_local")
    # The stream is left again whatever happens, which a failing end of a recording does not do.
    with torch.cuda.stream(room.stream), recording:
        outputs = function(inputs)
    torch.cuda.current_stream().wait_stream(room.stream)
    return graph.replay, outputs


@dataclass(frozen=True, eq=False)
class _Recorded(Generic[Inputs, Outputs]):
    """A graph: write ``inputs``, call ``replay``, read ``outputs``."""

    inputs: Inputs
    replay: Callable[[], None]
    outputs: Outputs


class Recorder(Generic[Inputs, Outputs]):
    """A function of tensors, recorded for each shape of them that is met more than once.

    Each call computes it once, so it may also change memory of its own. If a recording fails, which a remark says, the
    function is only called from then on.

    Args:
        function: of what :meth:`__call__` makes; its shapes follow from those of its inputs alone.
        what: it computes, for the remark.
    """

    def __init__(self, function: Callable[[Inputs], Outputs], what: str):
        self.function, self.what = function, what
        self.met: set[Hashable] = set()
        self.recorded: dict[Hashable, _Recorded[Inputs, Outputs]] = {}
        self.room = Room()
        self.works = True

    def __call__(self, shape: Hashable, new: Callable[[], Inputs], write: Callable[[Inputs], None]) -> Outputs:
        """The results of the function, in memory that the next call overwrites.

        Args:
            shape: of the inputs. The precision of products of matrices is seen to here.
            new: makes inputs of this shape.
            write: writes what the function is called with into inputs of this shape.
        """
        shape = shape, torch.get_float32_matmul_precision(), SPLIT.on  # what products were when they were recorded
        if shape not in self.recorded:
            inputs = new()
            write(inputs)
            if shape not in self.met or not self.works:
                self.met.add(shape)
                return self.function(inputs)
            outputs = warmed_up(self.function, inputs, self.room)
            self._record(shape, inputs)
            return outputs
        found = self.recorded[shape]
        write(found.inputs)
        found.replay()
        return found.outputs

    def _record(self, shape: Hashable, inputs: Inputs) -> None:
        """Keep a graph that reads these inputs, if there can be one."""
        try:
            found = _Recorded(inputs, *record(self.function, inputs, self.room))
        except RuntimeError as error:
            self.works = False
            first = error.__context__ or error  # the end of a recording fails for an earlier reason
            reason = str(first).split("\n")[0]
            print(f"warning: {self.what} could not be recorded as a CUDA graph: {reason}", file=sys.stderr, flush=True)
            return
        if len(self.recorded) == MAX_GRAPHS:
            self.recorded.pop(next(iter(self.recorded)))  # the oldest; others keep the shared memory in use
        self.recorded[shape] = found


Derivatives = tuple[Float[Tensor, "n_atoms"], Float[Tensor, "n_edges 3"]]
"""Energies, and their derivatives by pair vectors."""


class Graphs:
    """A function of edges and atoms, recorded for pairs of padded sizes; for GPUs with Triton.

    Args:
        function: strictly local; a pair vector of the length ``far`` contributes nothing, and its derivative is 0.
        far: Å, longer than any cutoff.
    """

    def __init__(self, function: Callable[[Edges], Derivatives], far: float):
        self.function, self.far = function, far
        self.recorder: Recorder[Edges, Derivatives] = Recorder(function, "an inference")

    def __deepcopy__(self, memo: dict[int, object]) -> "Graphs":
        """A copy without recordings: graphs stay with the model that they were recorded for."""
        return Graphs(self.function, self.far)

    def __call__(self, edges: Edges) -> Derivatives:
        """The results of ``function``: by atom in new memory, by edge in memory that the next call overwrites."""
        from equicat.kernels.gpu.fill import fill  # needs Triton

        edge_vec, edge_index, species = system = tuple(x.contiguous() for x in edges)
        n_atoms, n_edges = padded_sizes(len(species), len(edge_vec))
        by_atom, by_edge = self.recorder(
            (n_atoms, n_edges),
            new=lambda: Edges(
                edge_vec.new_empty(n_edges, 3), edge_index.new_empty(2, n_edges), species.new_empty(n_atoms)
            ),
            write=lambda inputs: fill(tuple(inputs), system, self.far),
        )
        return by_atom[: len(species)].clone(), by_edge[: len(edge_vec)]
