"""`equicat lammps`."""

import re
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace

from equicat.options.parser import Parser


def lammps(**options: Any) -> None:
    """A LAMMPS input script with a model as its `pair_style equicat`, also under `mpirun -np N`."""
    from equicat.interfaces import lammps_script

    lammps_script.lammps(**options)


class LammpsParser(Parser):
    """Parser of `equicat lammps`, which takes `-in FILE`, `-log FILE` and `-var NAME VALUE …` as LAMMPS does."""

    def __init__(self) -> None:
        super().__init__(lammps, usage="equicat lammps RUN -in FILE [--OPTION VALUE ...]")

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None, **settings: Any
    ) -> Namespace:
        """The values of all options.

        Raises:
            InputError: for an unknown or a missing option, or a value that is not what the option may be.
        """
        return super().parse_args(_with_two_dashes(args or ()), namespace, **settings)


def _with_two_dashes(words: Sequence[str]) -> list[str]:
    """LAMMPS's switches as options of ours: `-in f -var a 1 2 -var b 3` becomes `--in f --var 'a=1 2' b=3`."""
    others: list[str] = []
    variables: list[list[str]] = []
    goes_on = False
    for word in words:
        if word == "-var":
            variables.append([])
            goes_on = True
        elif goes_on and not re.match("-[a-zA-Z-]", word):
            variables[-1].append(word)
        else:
            goes_on = False
            others.append(f"-{word}" if word in ("-in", "-log") else word)
    given = [f"{name}={' '.join(values)}" for name, *values in filter(None, variables)]
    return [*others, "--var", *given] if given else others
