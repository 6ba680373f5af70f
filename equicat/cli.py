"""The command line: parses, calls one function, prints. Heavy modules are imported by the command that needs them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from equicat import __version__
from equicat.errors import InputError, nearest


@dataclass(frozen=True)
class Command:
    """One command: its parser and what it runs."""

    help: str
    build: Callable[..., ArgumentParser]
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


def _train_parser(arguments: Sequence[str] = (), network: str | None = None) -> ArgumentParser:
    """The options of ``model`` are those of the network: as given, else as the arguments name it."""
    from equicat.config import add_options

    parser = _parser("train", "Train a model as a YAML file says; any value can be overridden: --model.l_max 2.")
    parser.add_argument("--config", action="config", help="YAML file; also as the first argument.")
    add_options(parser, network or _network_named(arguments))
    return parser


def _network_named(arguments: Sequence[str]) -> str:
    """By the configuration file, or on the command line, which wins."""
    from equicat.config import network_of, read_yaml

    name = "allegro"
    words = [word for argument in _with_config_flag(arguments) for word in argument.split("=", 1)]
    for flag, value in pairwise(words):
        name = network_of(read_yaml(value)) if flag == "--config" else name
    for flag, value in pairwise(words):
        name = value if flag == "--model.name" else name
    return name


def _with_config_flag(arguments: Sequence[str]) -> list[str]:
    """The configuration file may stand first, without ``--config``."""
    return ["--config", *arguments] if arguments and not arguments[0].startswith("-") else list(arguments)


def _train_arguments(arguments: list[str]) -> list[str]:
    """Unknown keys get a message that names the nearest."""
    from equicat.config import check_keys

    if not arguments:
        raise InputError("equicat train: name a configuration file, such as configs/3bpa.yaml")
    arguments, network = _with_config_flag(arguments), _network_named(arguments)
    for argument in arguments:
        if argument.startswith("--") and argument not in ("--config", "--help", "--print_config"):
            name = argument[2:].split("=")[0].removesuffix("+")
            parts = name.split(".")
            check_keys({parts[0]: None} if len(parts) == 1 else {name: None}, source="command line", network=network)
    return arguments


def _train(options: Namespace) -> None:
    from equicat.config import TrainConfig
    from equicat.evaluate import as_text, evaluate_validation
    from equicat.report import write_report
    from equicat.train import is_main_process, train

    values = _train_parser(network=options.model.name).instantiate(options).as_dict()
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
    from equicat.datasets import describe
    from equicat.emt import EMTConfig, make_emt_dataset

    values = options.as_dict()
    out = Path(values.pop("out"))
    make_emt_dataset(out, EMTConfig(**values))
    print(describe(out))


def _import_parser() -> ArgumentParser:
    from equicat.importing import ImportConfig

    parser = _parser("data import", "Make a data set for S2EF, IS2RE and IS2RS of your own relaxations.")
    parser.add_argument("out", help="Data set directory to write, with a report of what was dropped and why.")
    parser.add_argument(
        "files", nargs="*", help="Trajectories (.traj, vasprun.xml, OUTCAR, .extxyz, also .gz, .xz) and directories."
    )
    parser.add_argument("--initial", nargs="+", default=[], help="Files of initial structures, without trajectories.")
    parser.add_argument("--relaxed", nargs="+", default=[], help="Their relaxed structures: same systems, same order.")
    parser.add_argument("--slab_files", nargs="+", default=[], help="Files of relaxed clean slabs, for references.")
    parser.add_class_arguments(ImportConfig, as_group=False, skip={"files", "initial", "relaxed", "slab_files"})
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace what is there.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")
    return parser


def _import(options: Namespace) -> None:
    from equicat.importing import ImportConfig, import_dataset
    from equicat.importing.report import MAX_LINES

    values = _import_parser().instantiate(options).as_dict()
    out, overwrite, progress = (values.pop(name) for name in ("out", "overwrite", "progress"))
    for name in ("files", "initial", "relaxed", "slab_files"):
        values[name] = tuple(values[name])
    report = import_dataset(out, ImportConfig(**values), overwrite=overwrite, progress=progress)
    print(report.as_text(MAX_LINES))
    print(f"\ndata set: {out}\nall files and systems: {Path(out) / 'import.txt'}, {Path(out) / 'import.json'}")


def _info_parser() -> ArgumentParser:
    parser = _parser("data info", "Say what is in a data set.")
    parser.add_argument("path", help="Data set directory, store or structure file.")
    return parser


def _info(options: Namespace) -> None:
    from equicat.datasets import describe

    print(describe(options.path))


def _demo_parser() -> ArgumentParser:
    parser = _parser("demo", "The whole main job in minutes: make data, train, evaluate on four splits, report.")
    parser.add_argument("--out", default="demo", help="Directory for data and run.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace what is there.")
    return parser


def _demo(options: Namespace) -> None:
    from equicat.demo import demo

    demo(Path(options.out), overwrite=options.overwrite)


# ---- convert -----------------------------------------------------------------------------------------------------


def _convert_parser() -> ArgumentParser:
    parser = _parser(
        "convert nequip-allegro", "A model of the nequip-allegro package as a run: the same numbers, faster."
    )
    parser.add_argument(
        "model", help="Checkpoint (.ckpt) or package (.nequip.zip). Both hold pickles: trust their source."
    )
    parser.add_argument("out", help="Run directory to write.")
    parser.add_argument(
        "--energy_reference",
        type=Literal["adsorption", "total", "relative"],
        default="total",
        help="Which energy the model was trained on.",
    )
    parser.add_argument(
        "--peer_python",
        type=str | None,
        default=None,
        help="Interpreter of an environment that has nequip-allegro. Default: this one (extra [bench]).",
    )
    return parser


def _convert(options: Namespace) -> None:
    from equicat.convert import convert

    convert(options.model, options.out, options.energy_reference, options.peer_python)
    print(f"run: {options.out}\nto tune it: equicat train {options.out}/finetune.yaml --data.train … --run.out …")


# ---- bench -------------------------------------------------------------------------------------------------------


def _bench_speed_parser() -> ArgumentParser:
    from equicat.bench_commands import speed_options

    text = "Training step, inference, first step and memory beside nequip-allegro, with the same weights."
    return speed_options(_parser("bench speed", text))


def _bench_scaling_parser() -> ArgumentParser:
    from equicat.bench_commands import scaling_options

    return scaling_options(_parser("bench scaling", "Time and memory of an inference against the size of the system."))


def _bench_speed(options: Namespace) -> None:
    from equicat.bench_commands import run_speed

    run_speed(options.as_dict())


def _bench_scaling(options: Namespace) -> None:
    from equicat.bench_commands import run_scaling

    run_scaling(options.as_dict())


COMMANDS = {
    "demo": Command("the whole main job on an embedded data set", _demo_parser, _demo),
    "data emt": Command("make a physical toy data set", _emt_parser, _emt),
    "data import": Command("make a data set of your own relaxations", _import_parser, _import),
    "data info": Command("say what is in a data set", _info_parser, _info),
    "train": Command("train a model", _train_parser, _train, _train_arguments),
    "evaluate": Command("OC20 metrics per split", _evaluate_parser, _evaluate),
    "predict": Command("energies and forces of structures", _predict_parser, _predict),
    "convert nequip-allegro": Command("a model of that package as a run", _convert_parser, _convert),
    "bench speed": Command("speed beside nequip-allegro", _bench_speed_parser, _bench_speed),
    "bench scaling": Command("time and memory against size", _bench_scaling_parser, _bench_scaling),
    "report": Command("an HTML page about a run", _report_parser, _report),
}


def _usage() -> str:
    lines = [f"equicat {__version__}: catalysis simulations with strictly local equivariant models", ""]
    lines += [f"  equicat {name:<10} {command.help}" for name, command in COMMANDS.items()]
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
            rest = rest if help_wanted else command.prepare(rest)
            parser = command.build(rest) if command.build is _train_parser else command.build()
            command.run(parser.parse_args(rest))
            return
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    name = " ".join(arguments[:2] if arguments[0] in groups else arguments[:1])
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
