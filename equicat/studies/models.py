"""The models that studies compare, and how a preset, a task, a size, a seed and a budget make a cell."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from equicat.errors import InputError, Remark, nearest
from equicat.options.text import read_yaml
from equicat.options.values import Checked, Length, Positive, PositiveNumber
from equicat.studies.cells import Cell
from equicat.studies.run_cell import configuration
from equicat.studies.study_data import StudyData
from equicat.training.presets import find_configuration, presets

PUBLISHED_SIZES = {
    "s2ef": {"200k": 200_000, "2M": 2_000_000, "20M": 20_000_000, "all": 133_934_018},
    "is2re": {"10k": 10_000, "100k": 100_000, "all": 460_328},
    "is2rs": {"10k": 10_000, "100k": 100_000, "all": 460_328},
}
"""Training structures of OC20's subsets, by task."""
ENDLESS = 100_000
"""Epochs that no training of a given time comes to."""


@dataclass(frozen=True)
class Model:
    """One model of a study."""

    presets: tuple[str, ...]
    """Names of its configuration in a folder of presets; the first that is there is taken."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Options of the model itself, by part, over those of the preset."""
    heads: tuple[str, ...] = ("gradient",)
    """Displacement heads that the network can feed."""
    tasks: tuple[str, ...] = ("s2ef", "is2re", "is2rs")
    """Tasks in which it is a model of its own."""
    published: Mapping[str, str] = field(default_factory=dict)
    """Name of the model in ``published_oc20.csv``, by task."""
    paper_batch: int | None = None
    """Structures a step in the paper, for is2re with the presets of OC20, where these are for another l_max."""


def _allegro(l_max: int, paper_batch: int, **published: str) -> Model:
    heads = ("gradient", "magnitude-direction", "vector", "pair")
    names = {"is2re": f"allegro l_max {l_max}", **published}
    return Model(("allegro",), {"model": {"l_max": l_max}}, heads, published=names, paper_batch=paper_batch)


def _baseline(preset: str, name: str) -> Model:
    return Model((preset,), published=dict.fromkeys(("s2ef", "is2re", "is2rs"), name))


MODELS = {
    "allegro-l1": _allegro(1, 32, s2ef="allegro one layer"),
    "allegro-l2": _allegro(2, 16, is2rs="allegro"),
    "allegro-l3": _allegro(3, 4),
    "cgcnn": _baseline("cgcnn", "cgcnn"),
    "schnet": _baseline("schnet", "schnet"),
    "dimenet": _baseline("dimenet", "dimenet"),
    "dimenet++": _baseline("dimenet_plus_plus", "dimenet++"),
    "gemnet-t": Model(("gemnet_t", "gemnet"), heads=("gradient", "vector")),
    "gemnet-dt": Model(
        ("gemnet_dt", "gemnet"),
        {"force_head": "sum", "displacement_head": "sum"},
        ("sum",),
        ("s2ef", "is2rs"),
        {"s2ef": "gemnet-dt"},
    ),
    "nequip": Model(("nequip",), heads=("gradient", "magnitude-direction", "vector")),
}
"""Every model by the name that options and tables use. GemNet-dT differs from GemNet-T in forces and displacements
alone, so IS2RE knows one of them."""


def check_models(names: Sequence[str]) -> None:
    """Make sure that all names are models.

    Raises:
        InputError: naming one that is not, and the nearest.
    """
    for name in names:
        if name not in MODELS:
            raise InputError(f"models: no model {name!r}{nearest(name, MODELS)}; there are {', '.join(MODELS)}")


@dataclass(frozen=True)
class Options(Checked):
    """Options that all studies which train have in common."""

    models: Annotated[tuple[str, ...], Length(1)] = tuple(MODELS)
    """Models to compare."""
    seeds: Positive = 3
    """Trainings of each kind; the seed decides weights, order of batches, and which structures a subset holds."""
    epochs: Positive | None = None
    """Train all models for so many epochs. Without epochs, steps and minutes, for as long as the presets say."""
    direct_epochs: Positive | None = None
    """With epochs: those of is2re and is2rs, which have one structure of a relaxation where s2ef has all frames."""
    steps: Positive | None = None
    """Train all models, on subsets of any size, for so many steps of the optimiser, and validate ten times."""
    direct_steps: Positive | None = None
    """With steps: those of is2re and is2rs."""
    minutes: PositiveNumber | None = None
    """Train all models for so many minutes; with epochs or steps as well, all are done and shown apart."""
    direct_minutes: PositiveNumber | None = None
    """With minutes: those of is2re and is2rs."""
    presets: str = "small"
    """Folder of the configurations: small, oc20, or one of yours with files such as allegro.yaml."""
    train: dict[str, str] = field(default_factory=dict)
    """Options of `equicat train` for all trainings, such as {run.batch_size: 8}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_models(self.models)
        for name in ("epochs", "steps", "minutes"):
            if getattr(self, f"direct_{name}") is not None and getattr(self, name) is None:
                raise InputError(f"direct_{name} is for is2re and is2rs beside {name}, which is missing; give both")

    @property
    def budgets(self) -> tuple[str, ...]:
        """The budgets in words; empty words stand for what the presets say."""
        lengths = {
            "epochs": (self.epochs, self.direct_epochs),
            "steps": (self.steps, self.direct_steps),
            "min": (self.minutes, self.direct_minutes),
        }
        found = [
            f"{length:g} {unit}" + (f" ({direct:g} direct)" if direct else "")
            for unit, (length, direct) in lengths.items()
            if length is not None
        ]
        return tuple(found) or ("",)

    def length(self, budget: str, task: str) -> dict[str, Any]:
        """The options of the run that a budget stands for, in a task."""
        is_direct = task != "s2ef"
        if " epochs" in budget:
            epochs = self.direct_epochs if is_direct and self.direct_epochs else self.epochs
            return {"max_epochs": epochs, "max_minutes": None}
        if " steps" in budget:
            steps = self.direct_steps if is_direct and self.direct_steps else self.steps
            often = f"{max(1, (steps or 0) // 10)} steps"
            return {"max_epochs": ENDLESS, "max_steps": steps, "max_minutes": None, "val_every": often}
        if " min" in budget:
            minutes = self.direct_minutes if is_direct and self.direct_minutes else self.minutes
            return {"max_epochs": ENDLESS, "max_minutes": minutes}
        return {}


@dataclass(frozen=True)
class Grid:
    """Makes the cells of a study."""

    data: StudyData
    options: Options
    checked: set[str] = field(default_factory=set)
    """Trainings that were checked, seeds and sizes left out: reading one takes a tenth of a second."""
    missing: set[tuple[str, str]] = field(default_factory=set)
    """Models and tasks without a preset, of which it was said that they are left out."""

    def offers(self, model: str, task: str) -> bool:
        """Whether a model is one of its own in a task and has a preset; a remark says if it has none."""
        if task not in MODELS[model].tasks:
            return False
        if self._preset_name(MODELS[model], task, 0) is not None:
            return True
        if (model, task) not in self.missing:
            self.missing.add((model, task))
            text = f"presets: {self.options.presets} has none of {model} for {task}, which is left out"
            warnings.warn(text, Remark, stacklevel=2)
        return False

    def cell(self, model: str, task: str, n_train: int, seed: int, **more: Any) -> Cell:
        """One cell, its training checked.

        Args:
            model: name in :data:`MODELS`.
            task: what is trained.
            n_train: training structures.
            seed: of the training.
            more: ``budget`` (one of :attr:`Options.budgets`), ``smallest`` (structures of the smallest of the nested
                subsets, ``n_train`` if not given), and labels of :class:`~equicat.studies.cells.Cell`.

        Raises:
            InputError: if the preset is missing, or an option cannot be what it is.
        """
        smallest, budget = more.pop("smallest", n_train), more.get("budget", "")
        kind = MODELS[model]
        values = merged(self.preset(kind, task, n_train), kind.overrides)
        own: dict[str, Any] = {"task": task, "run": {**self.options.length(budget, task), "seed": seed}}
        if self.options.presets == "oc20" and task == "is2re" and kind.paper_batch is not None:
            own["run"]["batch_size"] = kind.paper_batch
        own["data"] = {"split_seed": self.data.split_seed(task, smallest, seed)}
        if more.get("head"):
            own["displacement_head"] = more["head"]
        if more.get("cutoff"):
            own["model"] = {"cutoff": more["cutoff"]}
        values = merged(merged(values, own), nested(self.options.train))
        run, often = values["run"], str(values["run"].get("val_every", 1))
        if often.isdecimal() and str(run.get("max_epochs")).isdecimal():
            run["val_every"] = min(int(often), int(run["max_epochs"]))  # so that there is a validation
        cell = Cell(model, task, n_train, seed, values, **more)
        content = json.dumps(merged(values, {"data": None, "run": {"seed": None}}))
        if content not in self.checked:
            configuration(cell, self.data.path, Path("run"))
            self.checked.add(content)
        return cell

    def preset(self, model: Model, task: str, n_train: int) -> dict[str, Any]:
        """The options of a model's preset, without data; of a preset for another task, without its loss.

        Raises:
            InputError: if the folder has none for the model.
        """
        name = self._preset_name(model, task, n_train)
        if name is None:
            raise InputError(f"presets: {self.options.presets} has no {' or '.join(model.presets)} for {task}")
        values = read_yaml(find_configuration(name))
        other_task = values.get("task", "s2ef") != task
        return {name: part for name, part in values.items() if name != "data" and not (other_task and name == "loss")}

    def _preset_name(self, model: Model, task: str, n_train: int) -> str | None:
        """The name or file of a preset. Presets of OC20 lie in folders by task and size; the nearest size is taken."""
        folder = self.options.presets
        sizes = sorted(PUBLISHED_SIZES[task].items(), key=lambda size: abs(size[1] - n_train))
        places = [folder, f"{folder}/{task}", *(f"{folder}/{task}/{name}" for name, _ in sizes)]
        names = [f"{place}/{name}" for place in places for name in model.presets]
        known = presets()
        found = (name if name in known else f"{name}.yaml" for name in names if name in known or _is_file(name))
        return next(found, None)


def _is_file(name: str) -> bool:
    return Path(f"{name}.yaml").is_file()


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options by part, those of ``over`` in the place of others of the same name."""
    parts = {k: {**(values.get(k) or {}), **v} if isinstance(v, Mapping) else v for k, v in over.items()}
    return {**values, **parts}


def nested(options: Mapping[str, str]) -> dict[str, Any]:
    """Dotted options by part: ``run.batch_size`` is ``batch_size`` of ``run``."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        part, _, option = name.partition(".")
        if option:
            found.setdefault(part, {})[option] = value
        else:
            found[part] = value
    return found
