"""Options of an import."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from equicat.errors import InputError
from equicat.options.values import Checked, Range, Words
from equicat.sources.dft.rules import Rules
from equicat.sources.splits import SplitConfig


@dataclass(frozen=True)
class ImportConfig(Checked):
    """Options of ``equicat data import``."""

    files: Annotated[tuple[str, ...], Words(positional=True)] = ()
    """Trajectories (.traj, vasprun.xml, OUTCAR, .extxyz ..., also .gz and .xz) and directories with them."""
    initial: Annotated[tuple[str, ...], Words()] = ()
    """Files of initial structures, each with its partner in relaxed: same systems, same order."""
    relaxed: Annotated[tuple[str, ...], Words()] = ()
    """Files of relaxed structures."""
    sid_key: str = "sid"
    """Info key that says which system a frame belongs to, where a file has several; without it a file is one system."""
    join: bool = False
    """A file goes on where the one before ended if both have the same system id, such as OUTCAR.1 and OUTCAR.2 of a
    restarted calculation in one folder."""
    energy_key: str | None = None
    """Info key of the energies (eV), if not the calculator's energy; of VASP's files this is energy(sigma->0), and
    free_energy takes TOTEN."""
    forces_key: str | None = None
    """Column of atoms with the forces (eV/Å), if not the calculator's forces."""
    energy_reference: Literal["adsorption", "total", "relative"] | None = None
    """adsorption: formed with references (given ones, clean slabs and gas molecules among the files) or, without any,
    what energy_key holds; total: as in the files; relative: each system's first kept frame is zero. Default: adsorption
    if references are given, or if those among the files do for every system; else total."""
    references: str | None = None
    """YAML file with total energies (eV) of gas molecules (gas: {H2: -6.77, H2O: -14.22, CO: -14.78}) and, if wanted,
    of clean slabs (slabs: {Cu16: -59.5}) by system id, by name or by formula."""
    slab_table: str | None = None
    """More clean slabs: CSV (name, energy) or YAML."""
    slab_files: Annotated[tuple[str, ...], Words()] = ()
    """Files or directories of relaxed clean slabs; found by composition and lattice vectors in the surface."""
    gas_files: Annotated[tuple[str, ...], Words()] = ()
    """Files or directories of relaxed gas molecules, beside or instead of the energies under gas in references."""
    clean_slab_share: Annotated[float, Range(at_least=0, below=1)] = 0.1
    """Clean slabs are S2EF frames too, relaxed ones of 0 eV adsorption energy. In training data the frames of each are
    repeated until they are this share of the frames measured against it, or a model hardly learns it; 0 leaves them
    out."""
    slab_key: str | None = None
    """Info key with the name under which a system's clean slab is in the table."""
    adsorbate: str = ""
    """Formula of the adsorbate of every system, such as CO; several equal ones on a slab are fine."""
    adsorbate_key: str | None = None
    """Info key with each system's adsorbate formula (a * is ignored)."""
    trust_tags: bool = True
    """Use the tags in the files: 0 subsurface, 1 surface, 2 adsorbate, or ase.build's numbers of layers."""
    infer_fixed: bool = False
    """Without a constraint, take atoms that never move for fixed."""
    reorder: bool = False
    """Put atoms that are in another order than in the first frame back, each at the nearest of its element."""
    rules: Rules = field(default_factory=Rules)
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.files and not self.initial:
            raise InputError("nothing to import: name trajectories or directories, or give --initial and --relaxed")
        if self.adsorbate and self.adsorbate_key:
            raise InputError("give the adsorbate's formula or the key that holds it, not both")
