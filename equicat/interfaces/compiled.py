"""A model as a program of PyTorch's own format, which runs where PyTorch does, without this package.

The energy and its derivative are traced into one graph of PyTorch's operators, for any number of atoms and pairs. It is
read by ``torch.export.load``. Edges find their centres by index there (:class:`equicat.kernels.forms.Indexed`), because
no step of a trace may depend on data.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.files import replacing_file
from equicat.interfaces.agreement import compare, examples
from equicat.kernels.forms import Indexed
from equicat.models.potential import Potential
from equicat.networks.allegro import Allegro, NequipAllegroConfig, Piece

SUFFIX = ".pt2"
INPUTS = ("positions", "cell", "numbers", "edge_index", "edge_shift")
OUTPUTS = ("energy", "atom_energies", "forces", "virial")
ABOUT = "equicat.json"
"""Name of the description inside the file."""

Results = tuple[Float64[Tensor, ""], Float64[Tensor, "n_atoms"], Float64[Tensor, "n_atoms 3"], Float64[Tensor, "3 3"]]


class Program(nn.Module):
    """Energies and forces of one system as a function of tensors alone."""

    def __init__(self, potential: Potential):
        super().__init__()
        self.potential = potential

    def forward(
        self,
        positions: Float64[Tensor, "n_atoms 3"],
        cell: Float64[Tensor, "3 3"],
        numbers: Int[Tensor, "n_atoms"],
        edge_index: Int[Tensor, "2 n_edges"],
        edge_shift: Int[Tensor, "n_edges 3"],
    ) -> Results:
        """Energy (eV), energies of atoms (eV), forces (eV/Å) and virial dE/dε (eV).

        Args:
            positions: Å.
            cell: rows are the lattice vectors, Å; zeros where there are none.
            numbers: atomic numbers; energies are NaN where the model does not know one.
            edge_index: centre and neighbour of each pair within the cutoff, in both directions; longer pairs add
                nothing.
            edge_shift: lattice vectors to add to the neighbour.
        """
        potential = self.potential
        species = potential.species_of_number[numbers]
        known = species.clamp(min=0)
        center, neighbor = edge_index[0], edge_index[1]
        vectors = positions[neighbor] - positions[center] + edge_shift.to(positions.dtype) @ cell
        with torch.enable_grad():
            edge_vec = vectors.to(potential.dtype).detach().requires_grad_()
            energies = traceable_energies(potential, edge_vec, edge_index, known)
            (gradient,) = torch.autograd.grad(energies.sum(), edge_vec)
        gradient, edge_vec = gradient.double(), edge_vec.detach().double()
        forces = torch.zeros_like(positions).index_add(0, center, gradient).index_add(0, neighbor, -gradient)
        atom_energies = energies.detach().double() + potential.reference_energies[known]
        atom_energies = torch.where(species < 0, torch.nan, atom_energies)
        return atom_energies.sum(), atom_energies, forces, edge_vec.t() @ gradient


def traceable_energies(
    potential: Potential,
    edge_vec: Float[Tensor, "n_edges 3"],
    edge_index: Int[Tensor, "2 n_edges"],
    species: Int[Tensor, "n_atoms"],
) -> Float[Tensor, "n_atoms"]:
    """E_i − ε_{Z_i} of every centre in eV, without a step that depends on data.

    Args:
        potential: a model that :func:`require_traceable` lets pass.
        edge_vec: r_ij in Å, in the model's precision.
        edge_index: centre and neighbour of each edge, in any order.
        species: of each atom.
    """
    network = potential.network
    geometry = network.geometry(edge_vec, edge_index, species)
    piece = Piece(geometry, Indexed(edge_index[0], species), network.prepared())
    features, _ = network.pair_features(piece, species)
    of_edges = potential.head.mlp(features)[:, 0]
    sums = torch.zeros_like(species, dtype=of_edges.dtype).index_add(0, edge_index[0], of_edges)
    energies = sums * potential.head.sum.norm * potential.factor(species)
    if potential.repulsion is not None:
        energies = energies + potential.repulsion(edge_vec, edge_index, species, len(potential.elements))
    return energies


def require_traceable(potential: Potential) -> None:
    """Refuse models whose energies cannot become a graph of PyTorch's operators.

    Raises:
        InputError: naming what stands in the way.
    """
    if not isinstance(potential.network, Allegro) or potential.direct_forces is not None:
        raise InputError(
            f"this model is {potential.config.name} with {potential.info.force_head} forces; Allegro models of "
            "energies and their gradient can be compiled"
        )
    if potential.long_range is not None:
        raise InputError("this model has latent charges (long_range), which a compiled model cannot have yet")
    if isinstance(potential.config, NequipAllegroConfig) and potential.config.radial == "spline":
        raise InputError("this model has model.radial spline, whose steps depend on data; it cannot be compiled")


def export(potential: Potential, out: Path) -> None:
    """Write a model as a program, once it gives the numbers of the model.

    Args:
        potential: an Allegro model of either flavour, with forces that are derivatives.
        out: file to write, ``….pt2``.

    Raises:
        InputError: for another model or name, or numbers that differ.
    """
    if out.suffix != SUFFIX:
        raise InputError(f"{out}: a compiled model is called …{SUFFIX}; give such a name")
    require_traceable(potential)
    structures = examples(potential, 2)
    program = traced(potential, structures[1])
    with replacing_file(out) as temporary, warnings.catch_warnings():
        # Constants that are parts of one tensor, and are saved as they are.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, temporary, extra_files={ABOUT: json.dumps(about(potential))})
        loaded = torch.export.load(temporary).module()
        found = [loaded(*inputs(structure, potential)) for structure in structures]
        energy, forces = torch.stack([f[0] for f in found]), torch.cat([f[2] for f in found])
        compare(potential, structures, energy.numpy(), forces.numpy())


def traced(potential: Potential, structure: Structure) -> torch.export.ExportedProgram:
    """The program of a model, with dynamic numbers of atoms and pairs.

    Args:
        potential: the model.
        structure: an example to trace with.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    example = inputs(structure, potential)
    Program(potential)(*example)  # makes the constants, which must not be part of the trace
    trace = make_fx(
        Program(potential), tracing_mode="symbolic", _allow_non_fake_inputs=True, _error_on_data_dependent_ops=True
    )
    n_atoms, n_edges = torch.export.Dim("n_atoms", min=2), torch.export.Dim("n_edges", min=2)
    sizes = ({0: n_atoms}, None, {0: n_atoms}, {1: n_edges}, {0: n_edges})
    return torch.export.export(trace(*example), example, dynamic_shapes=sizes, strict=False)


def inputs(structure: Structure, potential: Potential) -> tuple[Shaped[Tensor, "..."], ...]:
    """The arguments of a program for a system."""
    batch = Batch.from_structures([structure], potential.cutoff, dtype=potential.dtype)
    return batch.positions, batch.cell[0], batch.numbers, batch.edge_index, batch.edge_shift.long()


def about(potential: Potential) -> dict[str, Any]:
    """Facts that a user of the program has to know, as JSON in the file."""
    info = potential.info
    return {
        "made_by": "equicat",
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "units": "Å, eV, eV/Å",
        "cutoff": potential.cutoff,
        "elements": info.element_symbols,
        "dtype": info.dtype,
        "energy_reference": info.energy_reference,
    }
