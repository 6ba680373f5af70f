"""A trained model as an ASE calculator."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.models import saved
from equicat.models.domain import Action, DomainWatch
from equicat.models.gradient import ComputeOptions


class Calculator(AseCalculator):
    """Energies (eV), forces (eV/Å) and, for cells with volume, stress (eV/Å³) of a run's model.

    A model with direct forces has no stress. Which energy it is, adsorption, total or relative, stands in
    ``calculator.energy_reference``.

    """

    implemented_properties = [  # noqa: RUF012 (declared by ASE)
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]

    def __init__(
        self,
        run: str | Path,
        device: str = "auto",
        cuda_graphs: bool = True,
        outside_training: Action = "warn",
        **kwargs: Any,
    ):
        """Load the model of a run.

        Args:
            run: run directory that `equicat train` wrote.
            device: where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N.
            cuda_graphs: record inferences of small systems (:mod:`equicat.kernels.gpu.graphs`) on a GPU with Triton.
            outside_training: what to do about structures unlike those that the model was trained on: ``warn`` once of
                each kind (:class:`~equicat.errors.OutsideTraining`), raise an ``error``, or ``ignore`` it.
            kwargs: see ASE's ``Calculator``.

        Raises:
            InputError: if the run has no weights or predicts no forces, or the device is not there; when computing, for
                an element that the model does not know, or a structure outside of the training data if that is an
                ``error``.
        """
        super().__init__(**kwargs)
        self.potential = saved.load_potential(run, device, ComputeOptions(cuda_graphs=cuda_graphs))
        self.energy_reference = self.potential.info.energy_reference
        self.watch = DomainWatch(self.potential.info.domain, self.energy_reference, outside_training, False)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fills ``results``; see ASE."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        assert self.atoms is not None
        # Only what the model sees: columns, tags and constraints of the atoms may be as they like.
        structure = Structure(
            numbers=self.atoms.numbers.astype(np.int64),
            positions=self.atoms.positions.astype(np.float64),
            cell=self.atoms.cell.array.astype(np.float64),
            pbc=self.atoms.pbc,
            source="atoms",
        )
        batch = Batch.from_structures([structure], self.potential.cutoff, dtype=self.potential.dtype)
        batch = batch.to(self.potential.scale.device)
        with_stress = bool(self.atoms.pbc.all()) and self.potential.direct_forces is None
        with torch.no_grad():
            prediction = self.potential(batch, virial=with_stress)
        self.watch.look(batch)
        self.watch.say()
        energy = float(prediction.energy)
        references = self.potential.reference_energies[self.potential.species(batch)]
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": (prediction.atom_energies.double() + references).cpu().numpy(),
            "forces": prediction.forces.double().cpu().numpy(),
        }
        if with_stress:
            stress = prediction.virial[0].double().cpu().numpy() / self.atoms.get_volume()
            self.results["stress"] = full_3x3_to_voigt_6_stress(0.5 * (stress + stress.T))
