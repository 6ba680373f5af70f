"""`equicat demo`, `train`, `evaluate`, `predict`, `report` and `convert`."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from equicat.cli.command import Command, add_run_and, parser_for, with_bare, write_json_file
from equicat.errors import InputError
from equicat.relaxation.config import RelaxConfig


def _demo_parser() -> ArgumentParser:
    parser = parser_for("demo", "The whole main job in minutes: make data, train, evaluate on four splits, report.")
    parser.add_argument("--out", default="demo", help="Directory for data and run.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace what is there.")
    return parser


def _demo(options: Namespace) -> None:
    from equicat.studies.demo import demo

    demo(Path(options.out), overwrite=options.overwrite)


def _train_parser(arguments: Sequence[str] = (), network: str | None = None) -> ArgumentParser:
    """The options of ``model`` are those of the network: as given, else as the arguments name it."""
    from equicat.training.config import add_options

    parser = parser_for("train", "Train a model as a YAML file says; any value can be overridden: --model.l_max 2.")
    parser.add_argument("--config", action="config", help="YAML file; also as the first argument.")
    add_options(parser, network or _network_named(arguments))
    return parser


def _network_named(arguments: Sequence[str]) -> str:
    """By the configuration file, or on the command line, which wins."""
    from equicat.training.config import network_of, read_yaml

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
    from equicat.training.config import check_keys

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
    from equicat.apply.evaluate import as_text, evaluate_validation
    from equicat.report.page import write_report
    from equicat.training.config import TrainConfig
    from equicat.training.train import train
    from equicat.training.trainer import is_main_process

    values = _train_parser(network=options.model.name).instantiate(options).as_dict()
    values.pop("config", None)
    config = TrainConfig(**values)
    result = train(config)
    if not is_main_process():
        return
    if result.seconds:
        print(f"trained for {result.seconds / 60:.1f} min; best validation loss {result.best_val_loss:.4g}\n")
    print(as_text(evaluate_validation(result.run, progress=config.run.progress)))
    print(f"\nrun: {result.run}\nreport: {write_report(result.run)}")


def _evaluate_parser() -> ArgumentParser:
    parser = parser_for("evaluate", "OC20 metrics of a run on every split, trivial baselines beside them.")
    add_run_and(parser, "run")
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="Data set directory, store or structure file. Default: the validation data of the run.",
    )
    parser.add_argument("--energy_key", type=str | None, default=None, help="Info key of the energies (files only).")
    text = "Column of atoms with the forces (files only)."
    parser.add_argument("--forces_key", type=str | None, default=None, help=text)
    parser.add_argument(
        "--energy_reference",
        type=str | None,
        default=None,
        help="adsorption, total or relative: what the energies of a file are. Default: what the model predicts.",
    )
    parser.add_argument("--json", type=str | None, default=None, help="Write the metrics to this file as well.")
    text = "Relax the initial structures of the is2re splits, and compare with the relaxed ones (model of s2ef)."
    parser.add_argument("--relax", type=bool, default=False, help=text)
    parser.add_class_arguments(RelaxConfig, "relaxation")
    return parser


def _evaluate(options: Namespace) -> None:
    from equicat.apply import evaluate_relaxations as relaxations
    from equicat.apply.evaluate import as_text, evaluate, evaluate_validation

    if options.relax:
        config = RelaxConfig(**options.relaxation.as_dict())
        summary = relaxations.evaluate_relaxations(
            options.run, options.data, config, device=options.device, progress=options.progress
        )
        print(relaxations.as_text(summary))
        write_json_file(options.json, summary)
        return
    how = {"batch_size": options.batch_size, "device": options.device, "progress": options.progress}
    if options.data is None:
        summary = evaluate_validation(options.run, **how)
    else:
        names = ("energy_key", "forces_key", "energy_reference")
        which = {name: getattr(options, name) for name in names}
        summary = evaluate(options.run, options.data, **which, **how)
    print(as_text(summary))
    write_json_file(options.json, summary)


def _predict_parser() -> ArgumentParser:
    parser = parser_for("predict", "Energies (eV) and forces (eV/Å) of structures.")
    add_run_and(parser, "run", "structures")
    parser.add_argument("--out", required=True, help="extxyz file (also .gz, .xz), or .npz for OC20's leaderboard.")
    text = "One .npz of the four splits test_… or val_… of a data set directory, as the leaderboard takes it."
    parser.add_argument("--submission", type=Literal["test", "val"] | None, default=None, help=text)
    text = "Whose forces the .npz holds: free atoms (EvalAI) or all (the present leaderboard)."
    parser.add_argument("--forces_of", type=Literal["free", "all"], default="free", help=text)
    return parser


def _predict(options: Namespace) -> None:
    from equicat.apply.predict import predict

    n = predict(
        options.run,
        options.structures,
        options.out,
        submission=options.submission,
        forces_of=options.forces_of,
        batch_size=options.batch_size,
        device=options.device,
        progress=options.progress,
    )
    print(f"{n} structures: {options.out}")


def _report_parser() -> ArgumentParser:
    parser = parser_for("report", "One self-contained HTML page about a run.")
    parser.add_argument("run", help="Run directory.")
    parser.add_argument("--out", type=str | None, default=None, help="HTML file. Default: RUN/report.html.")
    return parser


def _report(options: Namespace) -> None:
    from equicat.report.page import write_report

    print(write_report(Path(options.run), None if options.out is None else Path(options.out)))


def _convert_parser() -> ArgumentParser:
    parser = parser_for(
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
    from equicat.interfaces.nequip_allegro import convert

    convert(options.model, options.out, options.energy_reference, options.peer_python)
    print(f"run: {options.out}\nto tune it: equicat train {options.out}/finetune.yaml --data.train … --run.out …")


COMMANDS = {
    "demo": Command("the whole main job on an embedded data set", _demo_parser, _demo),
    "train": Command("train a model", _train_parser, _train, _train_arguments),
    "evaluate": Command("OC20 metrics per split", _evaluate_parser, _evaluate, with_bare("--relax")),
    "predict": Command("energies and forces of structures", _predict_parser, _predict),
    "report": Command("an HTML page about a run", _report_parser, _report),
    "convert nequip-allegro": Command("a model of that package as a run", _convert_parser, _convert),
}
