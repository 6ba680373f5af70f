"""The command line: parses, calls one function, prints. Heavy modules are imported by the command that needs them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from equicat import __version__
from equicat.errors import InputError, nearest


@dataclass(frozen=True)
class Command:
    """One command: its parser and what it runs."""

    help: str
    build: Callable[[], ArgumentParser]
    run: Callable[[Namespace], None]
    prepare: Callable[[list[str]], list[str]] = field(default=lambda arguments: arguments)


class Parser(ArgumentParser):
    """Raises :class:`InputError` where argparse would print usage and exit."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        lines = [line.strip() for line in str(message).splitlines() if line.strip()]
        raise InputError(f"{self.prog}: {' '.join(lines)}")


def _parser(name: str, description: str) -> Parser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # what stands under a field is its help
    return Parser(prog=f"equicat {name}", description=description, exit_on_error=True)


def _with_bare(*flags: str) -> Callable[[list[str]], list[str]]:
    """Lets these options stand without ``true``."""

    def prepare(arguments: list[str]) -> list[str]:
        after = [*arguments[1:], "--"]
        pairs = zip(arguments, after, strict=True)
        return [word for a, b in pairs for word in ([a, "true"] if a in flags and b.startswith("--") else [a])]

    return prepare


def _run_and(parser: Parser, *names: str) -> None:
    help_texts = {
        "run": "Run directory that `equicat train` wrote.",
        "structures": "Structure file (anything ASE reads, also .gz and .xz) or store.",
    }
    for name in names:
        parser.add_argument(name, help=help_texts[name])
    parser.add_argument("--batch_size", type=int, default=16, help="Structures computed together.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")


# ---- train -------------------------------------------------------------------------------------------------------


def _train_parser() -> ArgumentParser:
    from equicat.config import TrainConfig

    parser = _parser("train", "Train a model as a YAML file says; any value can be overridden: --model.l_max 2.")
    parser.add_argument("--config", action="config", help="YAML file; also as the first argument.")
    parser.add_class_arguments(TrainConfig, as_group=False)
    return parser


def _train_arguments(arguments: list[str]) -> list[str]:
    """The configuration file may stand without ``--config``; unknown keys get a message that names the nearest."""
    from equicat.config import check_keys, read_yaml

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--config", *arguments]
    for flag, value in pairwise(arguments):
        if flag == "--config":
            read_yaml(value)
    if not arguments:
        raise InputError("equicat train: name a configuration file, such as configs/3bpa.yaml")
    for argument in arguments:
        if argument.startswith("--") and argument not in ("--config", "--help", "--print_config"):
            name = argument[2:].split("=")[0].removesuffix("+")
            parts = name.split(".")
            check_keys({parts[0]: None} if len(parts) == 1 else {name: None}, source="command line")
    return arguments


def _train(options: Namespace) -> None:
    from equicat.config import TrainConfig
    from equicat.evaluate import as_text, evaluate_validation
    from equicat.report import write_report
    from equicat.train import is_main_process, train

    values = _train_parser().instantiate(options).as_dict()
    values.pop("config", None)
    config = TrainConfig(**values)
    result = train(config)
    if not is_main_process():
        return
    print(f"trained for {result.seconds / 60:.1f} min; best validation loss {result.best_val_loss:.4g}\n")
    print(as_text(evaluate_validation(result.run, progress=config.run.progress)))
    print(f"\nrun: {result.run}\nreport: {write_report(result.run)}")


# ---- evaluate, predict, report -----------------------------------------------------------------------------------


def _evaluate_parser() -> ArgumentParser:
    parser = _parser("evaluate", "OC20 metrics of a run on every split, trivial baselines beside them.")
    _run_and(parser, "run")
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="Data set directory, store or structure file. Default: the validation data of the run.",
    )
    parser.add_argument("--energy_key", type=str | None, default=None, help="Info key of the energies (files only).")
    parser.add_argument(
        "--energy_reference",
        type=str | None,
        default=None,
        help="adsorption, total or relative: what the energies of a file are. Default: what the model predicts.",
    )
    parser.add_argument("--json", type=str | None, default=None, help="Write the metrics to this file as well.")
    return parser


def _evaluate(options: Namespace) -> None:
    from equicat.evaluate import as_text, evaluate, evaluate_validation
    from equicat.files import replacing_file, write_json

    how = {"batch_size": options.batch_size, "device": options.device, "progress": options.progress}
    if options.data is None:
        summary = evaluate_validation(options.run, **how)
    else:
        which = {"energy_key": options.energy_key, "energy_reference": options.energy_reference}
        summary = evaluate(options.run, options.data, **which, **how)
    print(as_text(summary))
    if options.json is not None:
        with replacing_file(Path(options.json)) as temporary:
            write_json(temporary, summary)


def _predict_parser() -> ArgumentParser:
    parser = _parser("predict", "Energies (eV) and forces (eV/Å) of structures.")
    _run_and(parser, "run", "structures")
    parser.add_argument("--out", required=True, help="extxyz file (also .gz, .xz), or .npz for OC20's leaderboard.")
    return parser


def _predict(options: Namespace) -> None:
    from equicat.predict import predict

    n = predict(
        options.run,
        options.structures,
        options.out,
        batch_size=options.batch_size,
        device=options.device,
        progress=options.progress,
    )
    print(f"{n} structures: {options.out}")


def _report_parser() -> ArgumentParser:
    parser = _parser("report", "One self-contained HTML page about a run.")
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--out", type=str | None, default=None, help="HTML file. Default: RUN/report.html.")
    return parser


def _report(options: Namespace) -> None:
    from equicat.report import write_report

    print(write_report(Path(options.run), None if options.out is None else Path(options.out)))


# ---- data, demo --------------------------------------------------------------------------------------------------


def _emt_parser() -> ArgumentParser:
    from equicat.emt import EMTConfig

    parser = _parser("data emt", "Make a toy OC20 on ASE's EMT potential: relaxations of adsorbates on metal slabs.")
    parser.add_argument("out", help="Data set directory to write.")
    parser.add_class_arguments(EMTConfig, as_group=False)
    return parser


def _emt(options: Namespace) -> None:
    from equicat.describe import describe
    from equicat.emt import EMTConfig, make_emt_dataset

    values = options.as_dict()
    out = Path(values.pop("out"))
    make_emt_dataset(out, EMTConfig(**values))
    print(describe(out))


def _oc20_parser() -> ArgumentParser:
    from equicat.oc20 import OC20Config

    parser = _parser("data oc20", "Download OC20, or take it from a disk, and make the stores that training reads.")
    parser.add_argument("out", help="Data set directory to write; splits that it has already are left.")
    source = "Directory that holds OC20 already: raw files, LMDBs, ASE-LMDBs or ASE databases. Default: download."
    parser.add_argument("--from", type=str | None, default=None, help=source)
    parser.add_class_arguments(OC20Config, as_group=False, skip={"source"})
    return parser


def _oc20(options: Namespace) -> None:
    from equicat.oc20 import OC20Config, make_oc20

    values = options.as_dict()
    out, source = Path(values.pop("out")), values.pop("from")
    for line in make_oc20(out, OC20Config(source=source, **values)):
        print(line)


def _subset_parser() -> ArgumentParser:
    parser = _parser("data subset", "Draw structures of a store; with one seed, a smaller subset is in a larger one.")
    parser.add_argument("store", help="Store to draw from.")
    parser.add_argument("out", help="Store to write.")
    parser.add_argument("--size", type=str, required=True, help="Number of structures, or 10k, 100k, 200k, 2M.")
    parser.add_argument("--seed", type=int, default=0, help="Of the draw.")
    parser.add_argument("--workers", type=int, default=1, help="Processes.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")
    return parser


def _subset(options: Namespace) -> None:
    from equicat.convert import write_subset

    how = {"seed": options.seed, "workers": options.workers, "progress": options.progress}
    print(f"{write_subset(options.store, options.out, options.size, **how):,} structures: {options.out}")


def _info_parser() -> ArgumentParser:
    parser = _parser("data info", "Say what is in a data set.")
    parser.add_argument("path", help="Data set directory, store, structure file, or leaderboard file.")
    parser.add_argument("--verify", type=bool, default=False, help="Compare every file of a store with its checksum.")
    return parser


def _info(options: Namespace) -> None:
    from equicat.describe import describe

    print(describe(options.path, options.verify, progress=True))


def _bench_data_parser() -> ArgumentParser:
    from equicat.bench_data import DataBenchConfig

    parser = _parser("bench data", "Structures a second and memory of reading a store, against fairchem's LMDB.")
    parser.add_argument("store", help="Store with energies and forces.")
    parser.add_class_arguments(DataBenchConfig, as_group=False)
    parser.add_argument("--json", type=str | None, default=None, help="Write the measurements to this file as well.")
    return parser


def _bench_data(options: Namespace) -> None:
    from equicat.bench_data import DataBenchConfig, as_text, bench_data
    from equicat.files import replacing_file, write_json

    values = options.as_dict()
    store, path = values.pop("store"), values.pop("json")
    result = bench_data(store, DataBenchConfig(**values))
    print(as_text(result))
    if path is not None:
        with replacing_file(Path(path)) as temporary:
            write_json(temporary, result)


def _demo_parser() -> ArgumentParser:
    parser = _parser("demo", "The whole main job in minutes: make data, train, evaluate on four splits, report.")
    parser.add_argument("--out", default="demo", help="Directory for data and run.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace what is there.")
    return parser


def _demo(options: Namespace) -> None:
    from equicat.demo import demo

    demo(Path(options.out), overwrite=options.overwrite)


COMMANDS = {
    "demo": Command("the whole main job on an embedded data set", _demo_parser, _demo),
    "data emt": Command("make a physical toy data set", _emt_parser, _emt),
    "data oc20": Command("download or convert OC20", _oc20_parser, _oc20, _with_bare("--strict", "--keep")),
    "data subset": Command("draw some structures of a store", _subset_parser, _subset),
    "data info": Command("say what is in a data set", _info_parser, _info, _with_bare("--verify")),
    "bench data": Command("how fast data are read", _bench_data_parser, _bench_data),
    "train": Command("train a model", _train_parser, _train, _train_arguments),
    "evaluate": Command("OC20 metrics per split", _evaluate_parser, _evaluate),
    "predict": Command("energies and forces of structures", _predict_parser, _predict),
    "report": Command("an HTML page about a run", _report_parser, _report),
}


def _usage() -> str:
    lines = [f"equicat {__version__}: catalysis simulations with strictly local equivariant models", ""]
    lines += [f"  equicat {name:<11} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`equicat COMMAND --help` tells the options, units and defaults of a command."])


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    if arguments[0] == "--version":
        print(__version__)
        return
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            command = COMMANDS[name]
            rest = arguments[words:]
            help_wanted = any(a in ("-h", "--help") for a in rest)
            command.run(command.build().parse_args(rest if help_wanted else command.prepare(rest)))
            return
    name = " ".join(arguments[:2] if arguments[0] in ("data", "bench") else arguments[:1])
    raise InputError(f"no command {name!r}{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")


def main(arguments: Sequence[str] | None = None) -> Any:
    """Entry point of the ``equicat`` command: exit status 0, or 2 and one line for bad input."""
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        print(f"equicat: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("equicat: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
