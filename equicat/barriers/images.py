"""Energies and forces of many images, in batches of bounded size, with neighbour lists that follow the atoms."""

from collections.abc import Sequence
from math import isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.data.structure import Structure
from equicat.relaxation.driver import EDGES_OF_AN_ATOM
from equicat.relaxation.models import ForceModel
from equicat.relaxation.pairs import Pairs, on_device, verlet_lists, verlet_lists_or_none


class ImageForces:
    """Energies and forces of images, wherever their atoms are moved to.

    Args:
        model: gives energies and forces.
        structures: one for each image; its positions are those of the first lists.
        names: of the images, all different.
        skin: Å; how far lists reach beyond the cutoff.
        edges: in a batch at most; None: as many as the model says.

    Raises:
        InputError: if two atoms of an image are at the same place.
    """

    def __init__(
        self,
        model: ForceModel,
        structures: Sequence[Structure],
        names: Sequence[str],
        skin: float = 0.5,
        edges: int | None = None,
    ):
        self.model, self.skin = model, skin
        self.structures, self.names = list(structures), list(names)
        self.reach = None if model.cutoff is None else model.cutoff + skin
        positions = on_device([s.positions for s in structures], model.device) if structures else []
        self.lists = verlet_lists(self.structures, positions, self.reach)
        self.budget = edges or model.edges
        self._divide()

    def _divide(self) -> None:
        """Put the images into parts, which are batches."""
        self.sizes = [len(s) for s in self.structures]
        self.parts = self._parts()
        self.pairs: list[Pairs | None] = [None] * len(self.parts)
        """One for each part; None when a list in it is new."""

    def _parts(self) -> list[slice]:
        """Consecutive images whose lists together fit into the budget, at least one each."""
        parts, start, total = list[slice](), 0, 0
        for k, (pairs, size) in enumerate(zip(self.lists, self.sizes, strict=True)):
            cost = pairs.n_edges or EDGES_OF_AN_ATOM * size
            if k > start and total + cost > self.budget:
                parts.append(slice(start, k))
                start, total = k, 0
            total += cost
        return [*parts, slice(start, len(self.lists))] if self.lists else []

    def keep(self, chosen: Sequence[int]) -> None:
        """Go on with some of the images only; their lists stay, so their numbers keep every bit."""
        for name in ("structures", "names", "lists"):
            setattr(self, name, [getattr(self, name)[k] for k in chosen])
        self._divide()

    def __call__(
        self, positions: Float[Tensor, "n_atoms 3"]
    ) -> tuple[Float[Tensor, "n_images"], Float[Tensor, "n_atoms 3"]]:
        """Energies (eV) and forces (eV/Å) in float64 at these positions (Å, of all images one after the other).

        An image in which two atoms are at the same place, or whose positions are not finite, gets NaN.
        """
        energies, forces = [positions.new_zeros(0)], [positions.new_zeros(0, 3)]
        first = 0
        for number, part in enumerate(self.parts):
            n_atoms = sum(self.sizes[part])
            energy, force = self._evaluate(number, positions[first : first + n_atoms])
            energies.append(energy)
            forces.append(force)
            first += n_atoms
        return torch.cat(energies), torch.cat(forces)

    def _evaluate(self, number: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Energies and forces of one part."""
        part = self.parts[number]
        pairs = self._pairs(number)
        lost = torch.zeros(len(self.sizes[part]), dtype=torch.bool, device=positions.device)
        if self.reach is not None:
            moved = pairs.moved(positions).tolist()
            far = [k for k, distance in enumerate(moved) if distance > self.skin / 2]
            lost[self._without_list(number, positions, moved, far)] = True
            pairs = self._pairs(number)
        # Lost images are computed where they last had a list, and what comes out is not used.
        sane = torch.where(pairs.layout.by_atom(lost), pairs.positions, positions)
        energy, forces = self.model(pairs.batch(sane))
        energy, forces = energy.double(), forces.double()
        return energy.masked_fill(lost, torch.nan), forces.masked_fill(pairs.layout.by_atom(lost), torch.nan)

    def _without_list(self, number: int, positions: Tensor, moved: Sequence[float], far: Sequence[int]) -> list[int]:
        """List the pairs of some images of a part anew, in one call; those of which that cannot be done."""
        part = self.parts[number]
        anew = [k for k in far if isfinite(moved[k])]
        where = positions.split(self.sizes[part])
        structures = [self.structures[part][k] for k in anew]
        found = verlet_lists_or_none(structures, [where[k] for k in anew], self.reach)
        made = {k: pairs for k, pairs in zip(anew, found, strict=True) if pairs is not None}
        for k, pairs in made.items():
            self.lists[part.start + k] = pairs
        if made:
            self.pairs[number] = None
        return [k for k in far if k not in made]

    def _pairs(self, number: int) -> Pairs:
        found, part = self.pairs[number], self.parts[number]
        if found is None:
            found = Pairs.of(
                self.structures[part], self.lists[part], self.names[part], self.model.cutoff, self.model.device
            )
            self.pairs[number] = found
        return found
