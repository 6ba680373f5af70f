"""Comparison of relaxed placements with a model's training data."""

from collections.abc import Sequence

from equicat.data.batches import batches
from equicat.data.datasets import MemoryDataset
from equicat.data.structure import Structure
from equicat.models.domain import DomainWatch
from equicat.relaxation.models import ForceModel, PotentialForces

BATCH_SIZE = 16


def outside_training(model: ForceModel, structures: Sequence[Structure]) -> tuple[str, ...]:
    """One warning of all that is unlike the training data in some structures, each kind of thing once; or none.

    Args:
        model: a trained one, or ASE calculators, of which nothing is known.
        structures: relaxed slabs, with and without adsorbates, and gas molecules.
    """
    if not isinstance(model, PotentialForces):
        return ()
    # The number of atoms does not count, as it would for adsorption energies: the clean slab is taken off.
    watch = DomainWatch(model.potential.info.domain, "total")
    dataset = MemoryDataset(structures)
    for batch in batches(dataset, model.potential.cutoff, BATCH_SIZE, dtype=model.potential.dtype):
        watch.look(batch)
    found = watch.texts()
    return (f"outside of the training data: {'; '.join(found)}",) if found else ()


def trained_on(model: ForceModel) -> tuple[str, bool | None]:
    """The gas references of the training data in words, and whether it held clean slabs; None if that is not known."""
    if not isinstance(model, PotentialForces):
        return "", None
    info = model.potential.info
    references = ", ".join(f"{name} {energy:.4g} eV" for name, energy in info.dataset_references.items())
    return references, None if info.domain is None or not info.domain.adsorbates else "" in info.domain.adsorbates
