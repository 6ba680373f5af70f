"""`equicat relax`."""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser, Namespace

from equicat.cli.command import Command, parser_for, with_bare


def _parser() -> ArgumentParser:
    from equicat.relaxation.config import RelaxConfig

    parser = parser_for("relax", "Relax many systems together with a model of energies and forces.")
    parser.add_argument("run", help="Run directory that `equicat train` wrote, of a model trained for s2ef.")
    parser.add_argument("structures", help="Structure file (anything ASE reads, also .gz and .xz) or store.")
    parser.add_argument("--out", required=True, help="extxyz file for the relaxed structures (also .gz, .xz).")
    parser.add_class_arguments(RelaxConfig, None)
    text = "Folder for one extxyz file of each system with all its steps."
    parser.add_argument("--trajectories", type=str | None, default=None, help=text)
    text = "Go on with an interrupted relaxation: finished systems are kept."
    parser.add_argument("--resume", type=bool, default=False, help=text)
    parser.add_argument("--overwrite", type=bool, default=False, help="Begin anew, and replace what is there.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0.")
    text = "Precision of the model; as it was trained if not given. Positions are float64 anyway."
    parser.add_argument("--dtype", type=Literal["float32", "float64"] | None, default=None, help=text)
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")
    return parser


def _relax(options: Namespace) -> None:
    import dataclasses

    import torch

    from equicat.relaxation.config import RelaxConfig
    from equicat.relaxation.parts import Output
    from equicat.relaxation.relax import relax

    names = [field.name for field in dataclasses.fields(RelaxConfig)]
    relaxed = relax(
        options.structures,
        options.run,
        RelaxConfig(**{name: options[name] for name in names}),
        out=Output(Path(options.out), options.trajectories, options.resume, options.overwrite),
        device=options.device,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        progress=options.progress,
    )
    print("this process is done; others still have systems to finish" if relaxed is None else relaxed.summary)


COMMANDS = {"relax": Command("relax structures, many at a time", _parser, _relax, with_bare("--resume", "--overwrite"))}
