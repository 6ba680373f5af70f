"""The values that a search tries, read from a sweep file of Weights & Biases.

The keys ``method``, ``metric`` and ``parameters`` are read; others, such as ``command``, are for Weights & Biases.
Parameters have the dotted names of options of `equicat train`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equicat.errors import InputError, nearest
from equicat.options.text import read_yaml
from equicat.options.values import shown

FOLDER = Path(__file__).parent / "sweeps"
"""Sweep files that are built in."""
METHODS = ("grid", "random", "bayes")
RANGES = ("uniform", "log_uniform_values", "int_uniform")
"""Distributions between ``min`` and ``max``, under the names that Weights & Biases gives them."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    distribution: str

    def smallest(self) -> int | float:
        """The lower end, a whole number for ``int_uniform``."""
        return int(self.low) if self.distribution == "int_uniform" else self.low


Values = tuple[str, ...]
"""Values to choose from, as text; the type of the option makes numbers of them."""


@dataclass(frozen=True)
class Space:
    """Values of options, the method that draws from them, and the metric that is wanted small or large."""

    method: str
    metric: str
    """A column of ``metrics.csv``, such as ``val_forces_mae``."""
    maximize: bool
    options: Mapping[str, Values | Range]

    @property
    def size(self) -> float:
        """Number of points; infinite with ranges."""
        return math.prod(float(len(v)) if isinstance(v, tuple) else math.inf for v in self.options.values())

    def first_point(self) -> dict[str, str | int | float]:
        """The first value of each option, or the lower end of its range."""
        return {name: v.smallest() if isinstance(v, Range) else v[0] for name, v in self.options.items()}

    def grid_point(self, k: int) -> dict[str, str]:
        """Point ``k`` of all combinations of values, the last option fastest."""
        point = {}
        for name, values in reversed(list(self.options.items())):
            assert isinstance(values, tuple), "read_space() refuses ranges in a grid"
            k, index = divmod(k, len(values))
            point[name] = values[index]
        return point


def read_space(name: str) -> Space:
    """The space in a sweep file of that path, or else in the built-in one of that name.

    Raises:
        InputError: if there is neither, or the file asks for what a search cannot do.
    """
    known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if not Path(name).is_file() and name not in known:
        raise InputError(
            f"{name}: no such sweep file, and no built-in one of that name{nearest(name, known)}; "
            f"there are {', '.join(known)}"
        )
    sweep = read_yaml(name if Path(name).is_file() else known[name])
    method = sweep.get("method", "random")
    if method not in METHODS:
        raise InputError(f"{name}: method is {shown(method)}; it must be one of {', '.join(METHODS)}")
    metric = sweep.get("metric")
    goals = ("minimize", "maximize")
    if not isinstance(metric, Mapping) or "name" not in metric or metric.get("goal", goals[0]) not in goals:
        raise InputError(f"{name}: metric must be a name and a goal, such as {{name: val_loss, goal: minimize}}")
    parameters = sweep.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise InputError(
            f"{name}: parameters must name options and their values, such as optimizer.lr: {{values: [1]}}"
        )
    options = {option: _values(f"{name}: parameters: {option}", spec) for option, spec in parameters.items()}
    if method == "grid" and any(isinstance(values, Range) for values in options.values()):
        raise InputError(f"{name}: a grid needs values, not ranges; take method random or bayes")
    return Space(method, str(metric["name"]), metric.get("goal") == "maximize", options)


def _values(where: str, spec: Any) -> Values | Range:
    """The values of one option.

    Raises:
        InputError: if they are given in another form than ``value``, ``values``, or ``min`` and ``max``.
    """
    if isinstance(spec, Mapping) and isinstance(spec.get("values"), list) and spec["values"]:
        return tuple(map(shown, spec["values"]))
    if isinstance(spec, Mapping) and "value" in spec:
        return (shown(spec["value"]),)
    if not isinstance(spec, Mapping) or not {"min", "max"} <= spec.keys():
        raise InputError(f"{where}: give value, values, or min and max (no nested parameters: use dotted names)")
    low, high = (_number(f"{where}: {end}", spec[end]) for end in ("min", "max"))
    whole = all("." not in str(spec[end]) and "e" not in str(spec[end]).lower() for end in ("min", "max"))
    distribution = spec.get("distribution", "int_uniform" if whole else "uniform")
    if distribution not in RANGES:
        raise InputError(f"{where}: distribution is {shown(distribution)}; it must be one of {', '.join(RANGES)}")
    if low > high or (distribution == "log_uniform_values" and low <= 0):
        raise InputError(f"{where}: min {low:g} and max {high:g} are no range for {distribution}")
    return Range(low, high, distribution)


def _number(where: str, text: Any) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where} is {shown(text)}; it must be a number")
    return number
