"""Is a structure like what the model was trained on? If not, its prediction is a guess, and a warning says so.

What is compared with the training data (:class:`~equicat.data.fitted.Domain`, kept in ``model.json``):

- pairs of elements that are neighbours, and their distance;
- the adsorbate, the catalyst, and the two together; clean slabs and molecules without a slab;
- for adsorption energies the number of atoms, because the error of a slab grows with it.

Nothing of this is an error bar: a structure that passes can be wrong as well. A run of an earlier version does not
know what it was trained on, and warns of nothing.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray

from equicat.data.batch import Batch
from equicat.data.contacts import formula_of
from equicat.data.fitted import Domain, catalyst_name, pair_name
from equicat.errors import InputError, OutsideTraining

Action = Literal["warn", "error", "ignore"]
"""Treatment of a structure outside of the training data."""

SHORTER = 0.9
"""A distance below this share of the shortest one in training is outside."""
LARGER = 1.5
"""A structure with more than so many times the atoms of the largest one in training is outside."""
ADSORBATE_TAG = 2
MAX_LISTED = 6
"""Findings that one warning lists."""


@dataclass
class Finding:
    """One way of being outside of the training data."""

    text: str
    first: str
    """The first structure in which it was found; empty if it has no name."""
    n_structures: int = 1
    said: bool = False

    def __str__(self) -> str:
        others = f" and {self.n_structures - 1} more" if self.n_structures > 1 else ""
        return f"{self.text} ({self.first}{others})" if self.first else self.text


@dataclass
class DomainWatch:
    """Looks at batches and says, once for each kind, what in them is outside of the training data of a model.

    Args:
        domain: what the model was trained on; if that is not known, nothing is looked at.
        energy_reference: which energy the model predicts.
        action: ``warn`` by :class:`OutsideTraining`, raise an ``error``, or ``ignore``.
    """

    domain: Domain | None
    energy_reference: str
    action: Action = "warn"
    numbered: bool = True
    """Whether structures without an id are called by their number."""
    findings: dict[str, Finding] = field(default_factory=dict)
    n_structures: int = 0

    def look(self, batch: Batch) -> None:
        """Look at the structures of a batch.

        Raises:
            InputError: for the first one outside of the training data, if the action is ``error``.
        """
        if self.domain is not None and self.action != "ignore":
            for k, subject, text in _findings(self.domain, batch, self.energy_reference == "adsorption"):
                self.found(subject, text, self.name_of(k, batch))
        self.n_structures += batch.n_systems

    def name_of(self, k: int, batch: Batch) -> str:
        """The name of a structure of the batch that comes next: its id and file, or its number if that tells something.

        Structures that are not numbered, as those of a calculator, have no file that would say more than their id.
        """
        name = batch.ids[k] if batch.ids else ""
        if not self.numbered:
            return name
        file = batch.sources[k] if batch.sources else ""
        if name and (not file or file.startswith("structure ")):  # named so for want of a file
            return name
        if not file or file == f"structure {k}":  # by its place in the batch
            return f"structure {self.n_structures + k}"
        return file if name in file else f"{name} in {file}"

    def found(self, subject: str, text: str, first: str) -> None:
        """Keep a finding for :meth:`say`, unless the action is ``ignore``.

        Args:
            subject: that tells kinds of findings apart; each is said once.
            text: the finding in words.
            first: name of the structure.

        Raises:
            InputError: if the action is ``error``.
        """
        if self.action == "error":
            raise InputError(
                f"{first or 'structure'}: outside of the training data: {text}; leave it out, or let this be a warning"
            )
        if subject in self.findings:
            self.findings[subject].n_structures += 1
        elif self.action == "warn":
            self.findings[subject] = Finding(text, first)

    def say(self) -> None:
        """Warn of what was found since the last time."""
        new = [finding for finding in self.findings.values() if not finding.said]
        if new:
            more = f"; and {len(new) - MAX_LISTED} more findings" if len(new) > MAX_LISTED else ""
            text = f"outside of the training data: {'; '.join(map(str, new[:MAX_LISTED]))}{more}"
            warnings.warn(text, OutsideTraining, stacklevel=2)
        for finding in new:
            finding.said = True

    def news_below(self, elements: Sequence[int]) -> Float[ndarray, "n_elements n_elements"] | None:
        """Å; shorter pairs of these elements are findings that there were not yet; None if there can be none."""
        if self.domain is None or self.action == "ignore":
            return None
        limits = np.zeros((len(elements), len(elements)))
        for (a, first), (b, second) in product(enumerate(elements), repeat=2):
            name = pair_name(first, second)
            shortest = self.domain.shortest.get(name)
            limit = np.inf if shortest is None else SHORTER * shortest
            limits[a, b] = 0.0 if f"{'pair' if shortest is None else 'short'} {name}" in self.findings else limit
        return limits

    def texts(self) -> list[str]:
        """Everything found so far, one line each."""
        return [str(finding) for finding in self.findings.values()]


def _findings(domain: Domain, batch: Batch, adsorption: bool) -> Iterator[tuple[int, str, str]]:
    """Number in the batch, what is unusual (a key), and that in words, for every structure outside of the domain."""
    numbers, tags, ends = (t.cpu().numpy() for t in (batch.numbers, batch.tags, batch.n_atoms.cumsum(0)))
    for k, (z, tag) in enumerate(zip(np.split(numbers, ends[:-1]), np.split(tags, ends[:-1]), strict=True)):
        for subject, text in _kind_findings(domain, z, tag):
            yield k, subject, text
        if adsorption and len(z) > LARGER * domain.largest:
            largest = f"the largest structure in training had {domain.largest}"
            yield k, "large", f"{len(z)} atoms, {largest}, and the error of a slab's energy grows with it"
    for k, pair, distance in _shortest(batch):
        name = pair.replace("-", "–")
        if pair not in domain.shortest:
            yield k, f"pair {pair}", f"{name} were never neighbours in training"
        elif distance < SHORTER * domain.shortest[pair]:
            yield k, f"short {pair}", f"{name} at {distance:.2f} Å, shortest in training {domain.shortest[pair]:.2f} Å"


def _kind_findings(
    domain: Domain, numbers: Int[ndarray, "n_atoms"], tags: Int[ndarray, "n_atoms"]
) -> Iterator[tuple[str, str]]:
    kind = adsorbate_and_catalyst(domain, numbers, tags)
    if kind is None:
        return
    adsorbate, catalyst = kind
    if not adsorbate and "" not in domain.adsorbates:
        yield "clean slab", "a slab without adsorbate, and none was in training"
    elif not catalyst and "" not in domain.catalysts:
        yield "molecule", "a molecule without a slab, and none was in training"
    elif adsorbate not in domain.adsorbates:
        yield f"adsorbate {adsorbate}", f"the adsorbate {adsorbate} was not in training"
    elif catalyst not in domain.catalysts:
        yield f"catalyst {catalyst}", f"the catalyst {catalyst} was not in training"
    elif domain.systems and catalyst not in domain.systems[adsorbate]:
        what = (
            (f"{adsorbate} on {catalyst}" if adsorbate else f"{catalyst} without adsorbate") if catalyst else adsorbate
        )
        yield f"combination {adsorbate} {catalyst}", f"{what} was not in training"


def adsorbate_and_catalyst(
    domain: Domain, numbers: Int[ndarray, "n_atoms"], tags: Int[ndarray, "n_atoms"]
) -> tuple[str, str] | None:
    """The formulas of a structure's adsorbate and of its catalyst, each empty if there is none.

    Args:
        domain: the training data, whose elements tell adsorbates from slabs where tags do not.
        numbers: atomic numbers.
        tags: OC20's, or others, which are not looked at.

    Returns:
        None if the training data had no adsorbates, or if it cannot be told which atoms are the adsorbate.
    """
    on_surface = _adsorbate(domain, numbers, tags) if domain.adsorbates else None
    if on_surface is None:
        return None
    return formula_of(numbers[on_surface].tolist()), catalyst_name(numbers[~on_surface])


def _adsorbate(domain: Domain, numbers: ndarray, tags: ndarray) -> ndarray | None:
    """A mask of the atoms of the adsorbate; None if that cannot be told.

    Tags tell, if they can be OC20's. Other tags (ASE numbers layers), or none, leave the elements: those that only
    adsorbates had in training.
    """
    tagged = tags == ADSORBATE_TAG
    if tagged.any() and tags.max() == ADSORBATE_TAG and np.isin(numbers[tagged], domain.adsorbate_elements).all():
        return tagged
    on_surface = np.isin(numbers, domain.adsorbate_elements)
    ambiguous = on_surface & np.isin(numbers, domain.slab_elements)
    return None if ambiguous.any() else on_surface


def _shortest(batch: Batch) -> Iterator[tuple[int, str, float]]:
    """The shortest distance (Å) between neighbours of each two elements in each structure of a batch."""
    elements, species = torch.unique(batch.numbers, return_inverse=True)
    n, (center, neighbor) = len(elements), batch.edge_index
    low, high = torch.minimum(species[center], species[neighbor]), torch.maximum(species[center], species[neighbor])
    place = (batch.system_idx[center] * n + low) * n + high
    distance = batch.edge_vec().detach().norm(dim=1)
    shortest = distance.new_full((batch.n_systems * n * n,), torch.inf).scatter_reduce(0, place, distance, "amin")
    table, zs = shortest.view(batch.n_systems, n, n).cpu().numpy(), elements.tolist()
    for k, a, b in np.argwhere(np.isfinite(table)).tolist():
        yield k, pair_name(zs[a], zs[b]), float(table[k, a, b])
