"""`equicat data …`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from equicat.cli.command import Command, parser_for, with_bare

LISTS_OF_FILES = ("files", "initial", "relaxed", "slab_files", "gas_files")
"""Options of `equicat data import` that take any number of words."""


def _emt_parser() -> ArgumentParser:
    from equicat.sources.emt.make import EMTConfig

    parser = parser_for("data emt", "Make a toy OC20 on ASE's EMT potential: relaxations of adsorbates on metal slabs.")
    parser.add_argument("out", help="Data set directory to write.")
    parser.add_class_arguments(EMTConfig, as_group=False)
    return parser


def _emt(options: Namespace) -> None:
    from equicat.sources.describe import describe
    from equicat.sources.emt.make import EMTConfig, make_emt_dataset

    values = options.as_dict()
    out = Path(values.pop("out"))
    make_emt_dataset(out, EMTConfig(**values))
    print(describe(out))


def _import_parser() -> ArgumentParser:
    from equicat.sources.dft.config import ImportConfig

    parser = parser_for("data import", "Make a data set for S2EF, IS2RE and IS2RS of your own relaxations.")
    parser.add_argument("out", help="Data set directory to write, with a report of what was dropped and why.")
    parser.add_argument(
        "files", nargs="*", help="Trajectories (.traj, vasprun.xml, OUTCAR, .extxyz, also .gz, .xz) and directories."
    )
    parser.add_argument("--initial", nargs="+", default=[], help="Files of initial structures, without trajectories.")
    parser.add_argument("--relaxed", nargs="+", default=[], help="Their relaxed structures: same systems, same order.")
    parser.add_argument("--slab_files", nargs="+", default=[], help="Files of relaxed clean slabs, for references.")
    parser.add_argument("--gas_files", nargs="+", default=[], help="Files of relaxed gas molecules, for references.")
    parser.add_class_arguments(ImportConfig, as_group=False, skip={*LISTS_OF_FILES})
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace what is there.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")
    return parser


def _import(options: Namespace) -> None:
    from equicat.sources.dft.config import ImportConfig
    from equicat.sources.dft.make import import_dataset
    from equicat.sources.dft.report import MAX_LINES

    values = _import_parser().instantiate(options).as_dict()
    out, overwrite, progress = (values.pop(name) for name in ("out", "overwrite", "progress"))
    for name in LISTS_OF_FILES:
        values[name] = tuple(values[name])
    report = import_dataset(out, ImportConfig(**values), overwrite=overwrite, progress=progress)
    print(report.as_text(MAX_LINES))
    print(f"\ndata set: {out}\nall files and systems: {Path(out) / 'import.txt'}, {Path(out) / 'import.json'}")


def _oc20_parser() -> ArgumentParser:
    from equicat.sources.oc20.make import OC20Config

    parser = parser_for("data oc20", "Download OC20, or take it from a disk, and make the stores that training reads.")
    parser.add_argument("out", help="Data set directory to write; splits that it has already are left.")
    source = "Directory that holds OC20 already: raw files, LMDBs, ASE-LMDBs or ASE databases. Default: download."
    parser.add_argument("--from", type=str | None, default=None, help=source)
    parser.add_class_arguments(OC20Config, as_group=False, skip={"source"})
    return parser


def _oc20(options: Namespace) -> None:
    from equicat.sources.oc20.make import OC20Config, make_oc20

    values = options.as_dict()
    out, source = Path(values.pop("out")), values.pop("from")
    for line in make_oc20(out, OC20Config(source=source, **values)):
        print(line)


def _subset_parser() -> ArgumentParser:
    parser = parser_for(
        "data subset", "Draw structures of a store; with one seed, a smaller subset is in a larger one."
    )
    parser.add_argument("store", help="Store to draw from.")
    parser.add_argument("out", help="Store to write.")
    parser.add_argument("--size", type=str, required=True, help="Number of structures, or 10k, 100k, 200k, 2M.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw.")
    parser.add_argument("--workers", type=int, default=1, help="Processes.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")
    return parser


def _subset(options: Namespace) -> None:
    from equicat.sources.subsets import write_subset

    how = {"seed": options.seed, "workers": options.workers, "progress": options.progress}
    print(f"{write_subset(options.store, options.out, options.size, **how):,} structures: {options.out}")


def _info_parser() -> ArgumentParser:
    parser = parser_for("data info", "Say what is in a data set.")
    parser.add_argument("path", help="Data set directory, store, structure file, or leaderboard file.")
    parser.add_argument("--verify", type=bool, default=False, help="Compare every file of a store with its checksum.")
    parser.add_argument("--energy_key", type=str | None, default=None, help="Info key of the energies (files only).")
    text = "Column of atoms with the forces (files only)."
    parser.add_argument("--forces_key", type=str | None, default=None, help=text)
    return parser


def _info(options: Namespace) -> None:
    from equicat.sources.describe import describe

    if Path(options.path).suffix == ".npz":
        from equicat.tasks.leaderboard import check_submission

        print(check_submission(Path(options.path)))
    else:
        keys = {"energy_key": options.energy_key, "forces_key": options.forces_key}
        print(describe(options.path, options.verify, progress=True, **keys))


COMMANDS = {
    "data emt": Command("make a physical toy data set", _emt_parser, _emt),
    "data import": Command("make a data set of your own relaxations", _import_parser, _import),
    "data oc20": Command("download or convert OC20", _oc20_parser, _oc20, with_bare("--strict", "--keep")),
    "data subset": Command("draw some structures of a store", _subset_parser, _subset),
    "data info": Command("say what is in a data set", _info_parser, _info, with_bare("--verify")),
}
