"""`equicat data`: data sets, made, drawn from and described."""

from pathlib import Path
from typing import Any


def emt(out: str, *, overwrite: bool = False, **options: Any) -> None:
    """Make a toy OC20 on ASE's EMT potential: relaxations of adsorbates on metal slabs.

    Args:
        out: Data set directory to write.
        overwrite: Replace what is there.
    """
    from equicat.sources.describe import describe
    from equicat.sources.emt.make import EMTConfig, make_emt_dataset

    make_emt_dataset(out, EMTConfig(**options), overwrite=overwrite)
    print(describe(out))


def import_files(out: str, *, overwrite: bool = False, progress: bool = True, **options: Any) -> None:
    """Make a data set for S2EF, IS2RE and IS2RS of your own relaxations.

    Args:
        out: Data set directory to write, with a report of what was dropped and why.
        overwrite: Replace what is there.
        progress: Show a progress bar.
    """
    from equicat.sources.dft.config import ImportConfig
    from equicat.sources.dft.make import import_dataset
    from equicat.sources.dft.report import MAX_LINES

    report = import_dataset(out, ImportConfig(**options), overwrite=overwrite, progress=progress)
    print(report.as_text(MAX_LINES))
    print(f"\ndata set: {out}\nall files and systems: {Path(out) / 'import.txt'}, {Path(out) / 'import.json'}")


def oc20(out: str, *, from_: str | None = None, **options: Any) -> None:
    """Download OC20, or take it from a disk, and make the stores that training reads.

    Args:
        out: Data set directory to write; splits that it has already are left.
        from_: Directory that holds OC20 already: raw files, LMDBs, ASE-LMDBs or ASE databases. Default: download.
    """
    from equicat.sources.oc20.make import OC20Config, make_oc20

    for line in make_oc20(out, OC20Config(source=from_, **options)):
        print(line)


def subset(**options: Any) -> None:
    """Draw structures of a store; with one seed, a smaller subset is in a larger one."""
    from equicat.sources.subsets import write_subset

    print(f"{write_subset(**options):,} structures: {options['out']}")


def info(path: str, *, verify: bool = False, energy_key: str | None = None, forces_key: str | None = None) -> None:
    """Say what is in a data set.

    Args:
        path: Data set directory, store, structure file, or leaderboard file.
        verify: Compare every file of a store with its checksum.
        energy_key: Info key of the energies (files only).
        forces_key: Column of atoms with the forces (files only).
    """
    from equicat.sources.describe import describe
    from equicat.tasks.leaderboard import check_submission

    if Path(path).suffix == ".npz":
        print(check_submission(Path(path)))
    else:
        print(describe(path, verify, progress=True, energy_key=energy_key, forces_key=forces_key))
