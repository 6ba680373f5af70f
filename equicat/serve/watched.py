"""How far the relaxations of a job are before any has ended: systems that are relaxed together end in clusters."""

import json
import time
from collections import Counter
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from equicat.errors import InputError
from equicat.files import read_json, replacing_file
from equicat.models.potential import Potential
from equicat.relaxation.layout import Layout
from equicat.relaxation.models import ForceModel, PotentialForces
from equicat.relaxation.pairs import PairBatch

PAUSE = 0.7
"""Seconds between two notes of a job."""


class WatchedForces(PotentialForces):
    """A model that notes in a file, now and then, the step and the largest force of each system that is relaxed.

    Args:
        potential: the model.
        file: of the notes; replaced whole.
    """

    def __init__(self, potential: Potential, file: Path):
        super().__init__(potential)
        self.file, self.calls, self.noted = file, Counter[str](), 0.0

    def __call__(self, batch: PairBatch) -> tuple[Float[Tensor, "n_systems"], Float[Tensor, "n_atoms 3"]]:
        energy, forces = super().__call__(batch)
        self.calls.update(batch.ids)
        if time.monotonic() > self.noted + PAUSE:
            self.note(batch, forces)
            self.noted = time.monotonic()
        return energy, forces

    def note(self, batch: PairBatch, forces: Float[Tensor, "n_atoms 3"]) -> None:
        """Write steps so far and the largest force (eV/Å) on a free atom, by the number of the system."""
        free = forces.double().masked_fill(batch.fixed[:, None], 0.0)
        largest = Layout.of(batch.n_atoms).largest(free).tolist()
        found = {name: [self.calls[name] - 1, fmax] for name, fmax in zip(batch.ids, largest, strict=True)}
        with replacing_file(self.file) as temporary:
            temporary.write_text(json.dumps(found), encoding="utf-8")


def watched(model: ForceModel, file: Path) -> ForceModel:
    """The model, which notes how far it is if it is a trained one; ASE calculators take no part in it."""
    return WatchedForces(model.potential, file) if isinstance(model, PotentialForces) else model


def steps_in(file: Path) -> dict[int, tuple[int, float]]:
    """Step and largest force (eV/Å) by the number of a system, as noted last; nothing if there is no note yet."""
    try:
        return {int(number): (int(step), float(fmax)) for number, (step, fmax) in read_json(file).items()}
    except InputError:
        return {}
