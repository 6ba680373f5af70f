"""Extrapolation grades in LAMMPS: a quantity of each atom that scripts dump and compare.

The grade of an atom depends on its own pairs only, so each rank grades the atoms that it owns, and their number and
placement change nothing.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from numpy import ndarray

from equicat.data.batch import Batch
from equicat.errors import InputError
from equicat.models.domain import DomainWatch
from equicat.models.potential import Potential
from equicat.models.uncertainty import atom_features, check_max_grade, high_grade, no_grade
from equicat.options.values import Checked, Positive, PositiveNumber

PROPERTY = "d_grade"
"""Name of the atoms' property, for ``dump custom`` and ``compute property/atom``."""


@dataclass(frozen=True)
class GradeOptions(Checked):
    """How often atoms are graded, and which grade is too high."""

    grade: Positive = 1
    """Steps from one grading to the next; the first step of each run is graded as well."""
    max_grade: PositiveNumber | None = None
    """Grade above which an atom counts as outside of the training data."""


class LammpsGrades:
    """Writes the grade of every atom into LAMMPS, and the largest one into the vector of a ``fix external``.

    Args:
        lmp: the LAMMPS instance.
        fix: name of its ``fix external``.
        potential: a model with a grade.
        options: how often.
        watch: what to do about a grade that is too high.

    Raises:
        InputError: for a model without a grade, or a limit that nothing would look at.
    """

    def __init__(self, lmp: Any, fix: str, potential: Potential, options: GradeOptions, watch: DomainWatch):
        if reason := no_grade(potential):
            raise InputError(f"no grades: {reason}")
        if options.max_grade is not None:
            check_max_grade(potential, options.max_grade, watch.action)
        self.lmp, self.comm, self.fix, self.watch = lmp, lmp.get_mpi_comm(), fix, watch
        self.potential, self.options = potential, options
        self.last_step: int | None = None
        """Step of the last call; LAMMPS calls again at that step when the next run starts."""
        lmp.command(f"fix {fix}_grades all property/atom {PROPERTY} writedata no")
        lmp.fix_external_set_vector_length(fix, 1)

    def __call__(self, step: int, batch: Batch, n_local: int, ids: Int[ndarray, "n_local"]) -> None:
        """Grade the local atoms if it is time to; all ranks call it together.

        Args:
            step: of LAMMPS.
            batch: local atoms, then ghosts.
            n_local: number of local atoms.
            ids: of local atoms.

        Raises:
            InputError: on the first rank, for a grade above the limit if that is an error.
        """
        due = step % self.options.grade == 0 or self.last_step in (None, step)
        self.last_step = step
        if not due:
            return
        assert self.potential.grade is not None
        features, species = atom_features(self.potential, batch)[:n_local], self.potential.species(batch)[:n_local]
        grades = self.potential.grade.of(features.cpu(), species.cpu()).numpy()
        if n_local:
            self.lmp.numpy.extract_atom(PROPERTY, nelem=n_local).ravel()[:] = grades
        largest = (-1.0, 0, 0)
        if n_local:
            atom = int(grades.argmax())
            largest = (float(grades[atom]), int(ids[atom]), int(batch.numbers[atom]))
        grade, atom_id, number = max(self.comm.allgather(largest))
        self.lmp.fix_external_set_vector(self.fix, 1, grade)
        if self.options.max_grade is not None and grade > self.options.max_grade and self.comm.rank == 0:
            first = f"step {step}" if self.watch.action == "warn" else ""  # an error is said with its step anyway
            self.watch.found("grade", high_grade(atom_id, number, grade, self.options.max_grade), first)
            self.watch.say()
