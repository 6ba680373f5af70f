"""The module that metatomic saves with a model; TorchScript reads this file, so its types are those that it knows.

It is imported where metatomic is installed only.
"""

from typing import Dict, List, Optional  # noqa: UP035 (as TorchScript wants it)

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, NeighborListOptions, System


class MetatomicModel(torch.nn.Module):
    """Energies of systems, or of their atoms, in eV; the program that asks takes derivatives.

    Args:
        energies: TorchScript of pair vectors, indices and species to energies of atoms.
        species_of_number: species by atomic number.
        references: energy of each species in eV.
        cutoff: Å.
    """

    species_of_number: torch.Tensor
    references: torch.Tensor

    def __init__(
        self, energies: torch.nn.Module, species_of_number: torch.Tensor, references: torch.Tensor, cutoff: float
    ):
        super().__init__()
        self.energies = energies
        self.register_buffer("species_of_number", species_of_number)
        self.register_buffer("references", references)
        self.pairs = NeighborListOptions(cutoff=cutoff, full_list=True, strict=True)

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        """The pairs that the program finds: in both directions, within the cutoff."""
        return [self.pairs]

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels],  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        """The energies of the selected atoms; see ``metatomic.torch.ModelInterface``."""
        results: Dict[str, TensorMap] = {}  # noqa: UP006
        if "energy" not in outputs:
            return results
        device = systems[0].positions.device
        by_atom = outputs["energy"].sample_kind == "atom"
        values: List[torch.Tensor] = []  # noqa: UP006
        samples: List[torch.Tensor] = []  # noqa: UP006
        for k, system in enumerate(systems):
            pairs = system.get_neighbor_list(self.pairs)
            edge_index = pairs.samples.values[:, :2].t().to(torch.long)
            species = self.species_of_number[system.types.to(torch.long)]
            energies = self.energies(pairs.values[:, :, 0], edge_index, species) + self.references[species]
            atoms = torch.arange(len(system), device=device)
            if selected_atoms is not None:
                chosen = selected_atoms.values.to(torch.long)
                atoms = chosen[chosen[:, 0] == k, 1]
            energies = energies[atoms]
            system_and_atom = torch.stack([torch.full_like(atoms, k), atoms], dim=1).to(torch.int32)
            values.append(energies if by_atom else energies.sum(0, keepdim=True))
            samples.append(system_and_atom if by_atom else torch.tensor([[k]], dtype=torch.int32, device=device))
        names = ["system", "atom"] if by_atom else ["system"]
        block = TensorBlock(
            values=torch.cat(values)[:, None].to(systems[0].positions.dtype),
            samples=Labels(names, torch.cat(samples)),
            components=torch.jit.annotate(List[Labels], []),  # noqa: UP006
            properties=Labels(["energy"], torch.zeros(1, 1, dtype=torch.int32, device=device)),
        )
        results["energy"] = TensorMap(Labels(["_"], torch.zeros(1, 1, dtype=torch.int32, device=device)), [block])
        return results
