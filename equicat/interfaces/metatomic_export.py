"""Models as files of metatomic, which LAMMPS, GROMACS, i-PI, PLUMED, ASE, TorchSim and others read.

The energies of atoms are traced into a graph of PyTorch's operators (:mod:`equicat.interfaces.compiled`), which
TorchScript saves. The program that loads the file finds pairs and takes derivatives.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.extras import extra
from equicat.files import replacing_file
from equicat.interfaces.agreement import compare, examples
from equicat.interfaces.compiled import require_traceable, traceable_energies
from equicat.models.potential import Potential

SUFFIX = ".pt"


class _Energies(nn.Module):
    """Energies of atoms without reference energies, of pair vectors in float64."""

    def __init__(self, potential: Potential):
        super().__init__()
        self.potential = potential

    def forward(
        self,
        edge_vec: Float[Tensor, "n_edges 3"],
        edge_index: Int[Tensor, "2 n_edges"],
        species: Int[Tensor, "n_atoms"],
    ) -> Float[Tensor, "n_atoms"]:
        rounded = edge_vec.to(self.potential.dtype)
        return traceable_energies(self.potential, rounded, edge_index, species).double()


def export(potential: Potential, out: Path) -> None:
    """Write a model as a file of metatomic, once it gives the numbers of the model.

    Args:
        potential: an Allegro model of either flavour, with forces that are derivatives, on a CPU.
        out: file to write, ``….pt``.

    Raises:
        InputError: for another model or name, without metatomic, or for numbers that differ.
    """
    if out.suffix != SUFFIX:
        raise InputError(f"{out}: a model of metatomic is called …{SUFFIX}; give such a name")
    require_traceable(potential)
    metatomic = extra("metatomic.torch", "metatomic")
    structures = examples(potential, 2)
    species = potential.species_of_number.clamp(min=0)
    module = extra("equicat.interfaces.metatomic_model", "metatomic").MetatomicModel(
        scripted(potential, structures[1]), species, potential.reference_energies, potential.cutoff
    )
    kind = f"{potential.info.energy_reference} energy"
    capabilities = metatomic.ModelCapabilities(
        outputs={"energy": metatomic.ModelOutput(unit="eV", sample_kind="atom", description=kind)},
        atomic_types=list(potential.elements),
        interaction_range=potential.cutoff,
        length_unit="angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    metadata = metatomic.ModelMetadata(name=f"equicat {potential.config.name}", description=kind)
    model = metatomic.AtomisticModel(module.eval(), metadata, capabilities)
    with replacing_file(out) as temporary:
        model.save(temporary)
        energy, forces = results(temporary, structures, potential.cutoff)
        compare(potential, structures, energy, forces)


def scripted(potential: Potential, structure: Structure) -> torch.jit.ScriptModule:
    """The energies of atoms as TorchScript, for any number of atoms and pairs.

    Args:
        potential: the model.
        structure: an example to trace with.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    aten, energies = torch.ops.aten, _Energies(potential)
    batch = Batch.from_structures([structure], potential.cutoff, dtype=torch.float64)
    example = (batch.edge_vec(), batch.edge_index, potential.species_of_number[batch.numbers])
    energies(*example)  # makes the constants, which must not be part of the trace
    graph = make_fx(energies, tracing_mode="symbolic", _allow_non_fake_inputs=True, _error_on_data_dependent_ops=True)(
        *example
    )
    for node in graph.graph.nodes:  # TorchScript chooses among the overloads of an operator by itself
        if isinstance(node.target, torch._ops.OpOverload):
            packet = node.target.overloadpacket
            node.target = aten.to if packet is aten._to_copy else packet
    graph.recompile()
    return torch.jit.script(graph)


def results(
    path: Path, structures: Sequence[Structure], cutoff: float
) -> tuple[Float[ndarray, "n_systems"], Float[ndarray, "n_atoms 3"]]:
    """Energies (eV) and forces (eV/Å) of a saved model, with metatomic's own checks of what it returns.

    Args:
        path: file of metatomic.
        structures: the systems.
        cutoff: Å.
    """
    metatomic = extra("metatomic.torch", "metatomic")
    model = metatomic.load_atomistic_model(path)
    options = metatomic.ModelEvaluationOptions(
        length_unit="angstrom", outputs={"energy": metatomic.ModelOutput(unit="eV", sample_kind="system")}
    )
    systems = [_system(metatomic, structure, model) for structure in structures]
    energy = model(systems, options, check_consistency=True)["energy"].block().values[:, 0]
    slopes = torch.autograd.grad(energy.sum(), [system.positions for system in systems])
    return energy.detach().numpy(), -torch.cat(slopes).numpy()


def _system(metatomic: Any, structure: Structure, model: Any) -> Any:
    """A system of metatomic, with the pairs that the model asks for."""
    tensors = extra("metatensor.torch", "metatomic")
    cell = torch.from_numpy(structure.cell * structure.pbc[:, None])
    positions = torch.from_numpy(structure.positions.copy()).requires_grad_()
    numbers, pbc = torch.from_numpy(structure.numbers).int(), torch.from_numpy(structure.pbc)
    system = metatomic.System(numbers, positions, cell, pbc)
    for wanted in model.requested_neighbor_lists():
        batch = Batch.from_structures([structure], wanted.cutoff, dtype=torch.float64)
        samples = torch.cat([batch.edge_index, batch.edge_shift.t().long()]).t().int()
        pairs = tensors.TensorBlock(
            values=batch.edge_vec()[:, :, None],
            samples=tensors.Labels(
                ["first_atom", "second_atom", "cell_shift_a", "cell_shift_b", "cell_shift_c"], samples.contiguous()
            ),
            components=[tensors.Labels.range("xyz", 3)],
            properties=tensors.Labels.range("distance", 1),
        )
        metatomic.register_autograd_neighbors(system, pairs, check_consistency=True)
        system.add_neighbor_list(wanted, pairs)
    return system
