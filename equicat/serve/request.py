"""A screening as the page asks for it: every limit in a type, every name one of a table, every file an upload.

The functions behind take the names of files wherever they take the names of slabs and adsorbates. From the page they
must not, so names are checked here first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from ase.data import atomic_numbers

from equicat.adsorption.adsorbates import NAMES, OTHER_NAMES, SMILES
from equicat.adsorption.builders import SlabName, build_slab, slab_named
from equicat.adsorption.energies import AdsorptionConfig
from equicat.adsorption.slabs import Slab, prepared
from equicat.data.structure import Structure
from equicat.errors import InputError, nearest
from equicat.options.values import Checked, Range, hints_of, read_value
from equicat.serve.uploads import Uploads

MAX_ATOMS = 400
"""Atoms of a clean slab."""
MAX_MILLER = 5
"""A facet with larger indices has a cell of very many atoms."""
MAX_TOGETHER = 6
"""Adsorbates on one slab."""
MAX_ENTRIES = 40
"""Entries of a list."""
MAX_TEXT = 80
"""Characters of a name."""
MAX_SMILES = 40
"""Characters of SMILES; finding a geometry takes longer the larger a molecule is."""


@dataclass(frozen=True)
class Request(Checked):
    """A slab, adsorbates, and how they are placed and relaxed."""

    slab: str = ""
    """Name of a slab that is built, such as ``Cu(111) 3x3x4``; the bulk is an element."""
    slab_file: str = ""
    """Token of an uploaded slab, in place of the name."""
    bulk_file: str = ""
    """Token of an uploaded bulk, of which the slab with that name is cut; what the name says of the bulk is ignored."""
    adsorbates: tuple[str, ...] = ()
    """Names; ``CO+O`` are two on one slab."""
    adsorbate_files: tuple[str, ...] = ()
    """Tokens of uploaded adsorbates."""
    smiles: tuple[str, ...] = ()
    """Further adsorbates, as SMILES."""
    sites: tuple[str, ...] = ()
    """Names of sites, or the beginning of names; empty: all."""
    rotations: Annotated[int, Range(at_least=1, at_most=12)] = 3
    """Turns about the normal of the surface."""
    n_random: Annotated[int, Range(at_least=0, at_most=50)] = 0
    """Further placements of each adsorbate."""
    fixed_layers: Annotated[int, Range(at_least=0, at_most=20)] | None = None
    """Lowest layers that are fixed."""
    fmax: Annotated[float, Range(at_least=0.005, at_most=1)] = 0.05
    """eV/Å."""
    max_steps: Annotated[int, Range(at_least=1, at_most=2000)] = 300
    """Steps after which a system is given up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("adsorbates", "adsorbate_files", "smiles", "sites"):
            if len(getattr(self, name)) > MAX_ENTRIES:
                raise InputError(f"{name} has {len(getattr(self, name))} entries; give at most {MAX_ENTRIES}")

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Request":
        """The request of a JSON object.

        Raises:
            InputError: for a key that is none, or a value that is not what it may be.
        """
        this: Any = cls
        hints = hints_of(this)
        for name in values:
            if name not in hints:
                raise InputError(f"unknown key {name[:MAX_TEXT]!r}{nearest(name, hints)}")
        return cls(**{name: read_value(name, value, hints[name]) for name, value in values.items()})

    @property
    def tokens(self) -> list[str]:
        """Uploads that it is made of."""
        return [token for token in (self.slab_file, self.bulk_file, *self.adsorbate_files) if token]

    @property
    def config(self) -> AdsorptionConfig:
        """How slabs are built, adsorbates placed, and everything relaxed."""
        return AdsorptionConfig(
            sites=self.sites,
            rotations=self.rotations,
            n_random=self.n_random,
            fixed_layers=self.fixed_layers,
            fmax=self.fmax,
            max_steps=self.max_steps,
        )


def open_request(request: Request, uploads: Uploads) -> tuple[str | Structure | Slab, list[str | Structure]]:
    """The slab and the adsorbates of a request, as :func:`equicat.adsorption_energies` takes them.

    Raises:
        InputError: if one is none, or there is no slab or no adsorbate.
    """
    if bool(request.slab) == bool(request.slab_file) or (request.slab_file and request.bulk_file):
        raise InputError("give a slab: either an element or a bulk, a facet and a size, or an uploaded file")
    slab: str | Structure | Slab
    if request.slab_file:
        slab = uploads.structure(request.slab_file, "slab")
    elif request.bulk_file:
        slab = cut_slab(uploads.structure(request.bulk_file, "bulk"), request)
    else:
        slab = checked_slab(request.slab)
    if not (request.adsorbates or request.adsorbate_files or request.smiles):
        raise InputError("choose an adsorbate")
    named = [*map(checked_load, request.adsorbates), *map(checked_smiles, request.smiles)]
    return slab, [*named, *(uploads.structure(token, "adsorbate") for token in request.adsorbate_files)]


def checked_slab(text: str) -> str:
    """The name of a slab of an element that is not too large to build.

    Raises:
        InputError: if it is none.
    """
    name = checked_name(text)
    if name.bulk not in atomic_numbers or name.bulk == "X":
        raise InputError(f"{text}: {name.bulk} is no element; give an element, or upload the bulk or the slab")
    return text


def cut_slab(bulk: Structure, request: Request) -> Slab:
    """The slab that a request names, cut of a bulk structure.

    Raises:
        InputError: if the bulk is none, or the facet cannot be cut.
    """
    name, label = checked_name(request.slab), bulk.where
    if not bulk.pbc.all():
        raise InputError(
            f"{label}: is periodic along {bulk.pbc.tolist()}, and a bulk is periodic along all three vectors"
        )
    if len(bulk) * name.size[2] > MAX_ATOMS:
        raise InputError(f"{label}: {name.size[2]} layers of its {len(bulk)} atoms are too many; give a smaller cell")
    name = replace(name, bulk=label, text=f"{label}{name.text[name.text.index('(') :]}")
    atoms, note = build_slab(name, request.config, bulk.to_ase())
    return prepared(Structure.from_ase(atoms, source=name.text), request.config, (note,))


def checked_name(text: str) -> SlabName:
    """The parts of a name of a slab that is not too large to build.

    Raises:
        InputError: if it is none.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"slab: a name has at most {MAX_TEXT} characters")
    name = slab_named(text)
    if name is None:
        raise InputError(f"{text}: is no name of a slab; write element, facet and size, such as 'Cu(111) 3x3x4'")
    if max(map(abs, name.miller)) > MAX_MILLER:
        raise InputError(f"{text}: Miller indices are at most {MAX_MILLER} here; upload the slab")
    a, b, layers = name.size
    if a * b * layers > MAX_ATOMS:
        raise InputError(f"{text}: has more than {MAX_ATOMS} atoms; choose a smaller size")
    return name


def checked_smiles(text: str) -> str:
    """SMILES as :func:`equicat.adsorption_energies` takes them; whether they are a molecule is found out there.

    Raises:
        InputError: if they are too long.
    """
    if len(text) > MAX_SMILES:
        raise InputError(
            f"{text[:MAX_SMILES]}…: SMILES have at most {MAX_SMILES} characters here; upload the adsorbate"
        )
    return SMILES + text.strip()


def checked_load(text: str) -> str:
    """The names of adsorbates on one slab, with ``+`` between them, each of the table.

    Raises:
        InputError: naming the first that is not there.
    """
    names = [name.strip().replace("*", "") for name in text[:MAX_TEXT].split("+")]
    if len(names) > MAX_TOGETHER:
        raise InputError(f"{text[:MAX_TEXT]}: at most {MAX_TOGETHER} adsorbates on one slab")
    for name in names:
        if OTHER_NAMES.get(name, name) not in NAMES:
            raise InputError(f"no adsorbate {name!r}{nearest(name, NAMES)}; give one of {', '.join(NAMES)}")
    return "+".join(names)
