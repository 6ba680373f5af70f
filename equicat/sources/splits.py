"""Splits as OC20 has them: other systems of the kind trained on, unseen adsorbates, unseen catalysts, both unseen."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from ase.data import chemical_symbols

from equicat.data.contacts import composition
from equicat.data.directory import SPLITS, UNSEEN
from equicat.errors import InputError, nearest
from equicat.options.values import Checked, Natural, Positive, Range

MIN_KINDS = 5
"""Fewer adsorbates (or catalysts) than this, and none is held out unless it is named."""
MIN_SYSTEMS = 20
"""Fewer systems than this, and nothing is held out unless it is named."""
MIN_SUBSET = 10
"""Systems of the smallest training subset that is made without being asked for."""


@dataclass(frozen=True)
class SplitConfig(Checked, section="split"):
    """Options of the division into splits. All frames of a system are in one split."""

    name: str | None = None
    """One split of this name for everything."""
    key: str | None = None
    """Take the split's name from this info key of the frames, such as one that a published data set comes with."""
    file: str | None = None
    """Take it from a CSV file with two columns: system id, split."""
    held_out_adsorbates: tuple[str, ...] = ()
    """Adsorbates that training does not see, such as [CO,OH]; formulas in any order. Default: drawn, if there are
    enough."""
    held_out_catalysts: tuple[str, ...] = ()
    """Catalysts that training does not see, such as [Cu3Pd,Au]. Default: drawn, if there are enough."""
    catalysts: str = "composition"
    """Property that systems of one catalyst share: composition (reduced formula of the slab), elements (of the slab),
    folder (the first folder below the one that all files share, such as Cu211), or an info key of the frames."""
    val_share: Annotated[float, Range(at_least=0, below=1)] = 0.1
    """Share of the systems that goes to val_id."""
    ood_share: Annotated[float, Range(at_least=0, below=0.5)] = 0.1
    """Share of the systems whose adsorbate, and whose catalyst, is held out; 0 holds out none. At most twice this."""
    subsets: tuple[Positive, ...] | None = None
    """Systems in each training subset for data-efficiency studies; each holds all smaller ones. Default: a half, a
    quarter ... of the training systems, down to 10. [] makes none."""
    seed: Natural = 0
    """Decides all draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(value is not None for value in (self.name, self.key, self.file)) > 1:
            raise InputError("split: give one of name, key and file")


@dataclass(frozen=True)
class Kind:
    """Properties of a system that decide which split it goes to."""

    sid: str
    adsorbate: str
    catalyst: str
    elements: frozenset[int]


@dataclass
class Assignment:
    """Systems of each split, and what should be said about them."""

    splits: dict[str, list[str]]
    """System ids of each split, in the order of :data:`SPLITS`; the training systems are in the order of the subsets:
    the first n of them are the subset of n."""
    subsets: list[int] = field(default_factory=list)
    """Sizes, ascending."""
    notes: list[str] = field(default_factory=list)
    held_out_adsorbates: list[str] = field(default_factory=list)
    held_out_catalysts: list[str] = field(default_factory=list)


def assign(systems: Sequence[Kind], config: SplitConfig, given: Mapping[str, str] | None = None) -> Assignment:
    """Divide systems into splits.

    Training systems have every element that any drawn validation system has, since a model knows no other.

    Args:
        systems: in any order; the result depends on their order and the seed.
        config: how.
        given: the split of each system id, if that is decided already.

    Raises:
        InputError: if what is to be held out does not exist, or nothing is left to train on.
    """
    rng = np.random.default_rng(config.seed)
    if given is not None:
        names = dict.fromkeys((*SPLITS, *sorted({given[system.sid] for system in systems})))
        splits = {name: [s.sid for s in systems if given[s.sid] == name] for name in names}
        assignment = Assignment({name: sids for name, sids in splits.items() if sids})
    else:
        assignment = _draw(systems, config, rng)
    by_sid = {system.sid: system for system in systems}
    training = [by_sid[sid] for sid in assignment.splits.get("train", [])]
    if training:
        training = _nested_order(training, rng)
        assignment.splits["train"] = [system.sid for system in training]
        _add_subsets(assignment, training, config)
        _note_unseen_elements(assignment, by_sid)
    return assignment


def _draw(systems: Sequence[Kind], config: SplitConfig, rng: np.random.Generator) -> Assignment:
    assignment = Assignment({})
    if config.held_out_adsorbates or config.held_out_catalysts:
        adsorbates, catalysts = {s.adsorbate for s in systems}, {s.catalyst for s in systems}
        assignment.held_out_adsorbates = _named(config.held_out_adsorbates, adsorbates, "adsorbate")
        assignment.held_out_catalysts = _named(config.held_out_catalysts, catalysts, "catalyst")
    elif config.ood_share > 0:
        _hold_out(assignment, systems, config, rng)
    unseen = {
        s.sid: (s.adsorbate in assignment.held_out_adsorbates, s.catalyst in assignment.held_out_catalysts)
        for s in systems
    }
    seen = [s for s in systems if unseen[s.sid] == (False, False)]
    if not seen:
        raise InputError("every system has a held-out adsorbate or catalyst, so nothing is left to train on")
    val_id = _val_id(seen, max(1, round(config.val_share * len(systems))) if config.val_share else 0, rng)
    if config.val_share and not val_id:
        assignment.notes.append("no val_id: every system has an element that no other one has, or there is only one")
    assignment.splits["train"] = [s.sid for s in seen if s.sid not in val_id]
    assignment.splits["val_id"] = [s.sid for s in seen if s.sid in val_id]
    for split in SPLITS[2:]:
        assignment.splits[split] = [s.sid for s in systems if unseen[s.sid] == UNSEEN[split]]
    assignment.splits = {name: sids for name, sids in assignment.splits.items() if sids}
    return assignment


def _named(names: Iterable[str], known: set[str], what: str) -> list[str]:
    """Known names that are meant by some names: the same ones, or else those of the same composition.

    Raises:
        InputError: if there is none.
    """
    meant = []
    for name in names:
        same = {name} & known or {other for other in known if _parts(other) == _parts(name)}
        if not same:
            raise InputError(f"no {what} {name!r} to hold out{nearest(name, known)}; found {', '.join(sorted(known))}")
        meant += sorted(same)
    return meant


def _parts(name: str) -> list[list[tuple[int, int]]] | str:
    """Compositions of the parts of ``CO+O`` or ``Cu-Pd``, sorted; the name as it is if a part is no formula."""
    try:
        return sorted(sorted(composition(part, "").items()) for part in re.split("[+-]", name))
    except InputError:
        return name


def _hold_out(assignment: Assignment, systems: Sequence[Kind], config: SplitConfig, rng: np.random.Generator) -> None:
    """Draw held-out adsorbates, then catalysts, such that training keeps every element."""
    everything = _elements(systems)
    axes: tuple[tuple[str, Callable[[Kind], str], list[str]], ...] = (
        ("adsorbate", lambda s: s.adsorbate, assignment.held_out_adsorbates),
        ("catalyst", lambda s: s.catalyst, assignment.held_out_catalysts),
    )
    if len(systems) < MIN_SYSTEMS:
        assignment.notes.append(
            f"no val_ood splits: {len(systems)} systems are too few to hold any out ({MIN_SYSTEMS} are enough); "
            "name adsorbates or catalysts to do it all the same"
        )
        return
    for what, kind_of, held_out in axes:
        counts = Counter(kind_of(s) for s in systems)
        split = "val_ood_ads" if what == "adsorbate" else "val_ood_cat"
        if len(counts) < MIN_KINDS:
            assignment.notes.append(
                f"no {split}: {len(counts)} {what}s are too few to hold any out ({MIN_KINDS} are enough); "
                "name them to do it all the same"
            )
            continue
        share = config.ood_share * len(systems)
        for kind in rng.permutation(sorted(counts)).tolist():
            n_held_out = sum(counts[name] for name in held_out)
            if n_held_out >= share:
                break
            if n_held_out + counts[kind] > 2 * share:
                continue
            held_out.append(kind)
            left = [
                s
                for s in systems
                if s.adsorbate not in assignment.held_out_adsorbates and s.catalyst not in assignment.held_out_catalysts
            ]
            if _elements(left) != everything:
                held_out.remove(kind)
        if not held_out:
            assignment.notes.append(
                f"no {split}: each {what} is needed in training, for its elements or because it is too frequent"
            )


def _elements(systems: Iterable[Kind]) -> frozenset[int]:
    return frozenset().union(*(system.elements for system in systems))


def _val_id(seen: Sequence[Kind], n_wanted: int, rng: np.random.Generator) -> set[str]:
    """Up to ``n_wanted`` systems without which training still has every element."""
    holders = Counter(z for system in seen for z in system.elements)
    chosen: set[str] = set()
    for i in rng.permutation(len(seen)):
        if len(chosen) < n_wanted and all(holders[z] > 1 for z in seen[i].elements):
            chosen.add(seen[i].sid)
            holders.subtract(seen[i].elements)
    return chosen


def _nested_order(training: Sequence[Kind], rng: np.random.Generator) -> list[Kind]:
    """A random order in which all elements come early, so that small subsets know them."""
    shuffled = [training[i] for i in rng.permutation(len(training))]
    missing, first = set(_elements(shuffled)), []
    for system in shuffled:
        if missing & system.elements:
            first.append(system)
            missing -= system.elements
    return first + [system for system in shuffled if system not in first]


def _add_subsets(assignment: Assignment, training: Sequence[Kind], config: SplitConfig) -> None:
    sizes: list[int] = []
    if config.subsets is None:
        while (n := len(training) // 2 ** (len(sizes) + 1)) >= MIN_SUBSET:
            sizes.append(n)
        sizes.reverse()
    else:
        sizes = sorted(set(config.subsets))
        if sizes and not 1 <= sizes[0] <= sizes[-1] <= len(training):
            raise InputError(f"split.subsets {sizes}: there are {len(training)} training systems")
    assignment.subsets = sizes
    for n in sizes:
        absent = _elements(training) - _elements(training[:n])
        if absent:
            symbols = ", ".join(chemical_symbols[z] for z in sorted(absent))
            assignment.notes.append(f"the subset of {n} systems is too small for all elements; it lacks {symbols}")


def _note_unseen_elements(assignment: Assignment, by_sid: Mapping[str, Kind]) -> None:
    trained = _elements(by_sid[sid] for sid in assignment.splits["train"])
    for split, sids in assignment.splits.items():
        unknown = _elements(by_sid[sid] for sid in sids) - trained
        if unknown:
            symbols = ", ".join(chemical_symbols[z] for z in sorted(unknown))
            assignment.notes.append(f"{split} has elements that no training system has ({symbols}): no model can do it")
