"""Adsorption energies with the model's own clean slab taken off: E(slab + adsorbate) − E(slab).

By definition a clean slab has no adsorption energy. A model that never saw one gives it some energy all the same, more
the larger the slab, and a part of that is in every prediction on that slab. The difference leaves it out. It also
leaves out what it costs to deform the slab, because the atoms of the slab stay where the adsorbate has put them: of a
relaxed structure little, of a strongly distorted one more. docs/small_data.md has numbers.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.errors import InputError
from equicat.models.direct import DirectModel, RelaxedPrediction
from equicat.models.domain import ADSORBATE_TAG
from equicat.models.model import Prediction
from equicat.models.potential import Potential


def minus_clean_slab(
    model: Potential | DirectModel, batch: Batch, prediction: Prediction | RelaxedPrediction
) -> Prediction | RelaxedPrediction:
    """The prediction with the energy (eV) of each clean slab taken off; forces and displacements stay.

    Raises:
        InputError: if a system has no tags, or no atom besides the adsorbate.
    """
    if isinstance(model, DirectModel) and model.energy_atoms == "adsorbate":
        return prediction  # a clean slab has exactly 0
    slab = without_adsorbates(batch)
    if isinstance(prediction, RelaxedPrediction):
        assert isinstance(model, DirectModel)
        energy = model(slab).relaxed_energy
        return replace(prediction, relaxed_energy=_difference(prediction.relaxed_energy, energy))
    energy = model(slab, forces=False).energy
    return replace(prediction, energy=prediction.energy - energy)


def _difference(
    energy: Float[Tensor, "n_systems"] | None, slab: Float[Tensor, "n_systems"] | None
) -> Float[Tensor, "n_systems"]:
    assert energy is not None
    assert slab is not None
    return energy - slab


def clean_slab_of(structure: Structure) -> Structure:
    """A structure without its adsorbate (tag 2) and without labels; what was held stays so.

    Raises:
        InputError: if no atom has a tag, so that the adsorbate is not known, or all of them are the adsorbate.
    """
    assert structure.tags is not None
    adsorbate = structure.tags == ADSORBATE_TAG
    _check_tags(structure.where, bool(structure.tags.any()), bool(adsorbate.all()))
    return Structure.from_ase(structure.to_ase()[~adsorbate], source=structure.where, labels=())


def _check_tags(where: str, any_tag: bool, only_adsorbate: bool) -> None:
    if not any_tag:
        raise InputError(
            f"{where}: no atom has a tag, so its adsorbate is not known; give tags (2 for the adsorbate, 1 for the "
            "surface, 0 below), or leave minus_clean_slab out"
        )
    if only_adsorbate:
        raise InputError(f"{where}: every atom has tag 2, so no slab is left; leave minus_clean_slab out")


def without_adsorbates(batch: Batch) -> Batch:
    """The systems of a batch without the atoms of tag 2 and their edges, and without labels.

    Raises:
        InputError: if a system has no tags, so that its adsorbate is not known, or consists of an adsorbate alone.
    """
    adsorbate = batch.tags == ADSORBATE_TAG
    for k in range(batch.n_systems):
        here = batch.system_idx == k
        name = (batch.ids[k] if batch.ids else "") or str(k)
        _check_tags(f"system {name}", bool(batch.tags[here].any()), bool(adsorbate[here].all()))
    kept = ~adsorbate
    number = torch.cumsum(kept, 0) - 1
    center, neighbor = batch.edge_index
    edges = kept[center] & kept[neighbor]
    return Batch(
        positions=batch.positions[kept],
        cell=batch.cell,
        pbc=batch.pbc,
        numbers=batch.numbers[kept],
        system_idx=batch.system_idx[kept],
        edge_index=number[batch.edge_index[:, edges]],
        edge_shift=batch.edge_shift[edges],
        fixed=batch.fixed[kept],
        tags=batch.tags[kept],
        ids=batch.ids,
    )
