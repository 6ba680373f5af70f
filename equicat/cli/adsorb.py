"""`equicat adsorb`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from equicat.cli.command import Command, parser_for, with_bare
from equicat.errors import InputError


def _parser() -> ArgumentParser:
    from equicat.adsorption.energies import AdsorptionConfig

    parser = parser_for("adsorb", "Adsorption energies: placements on a slab, relaxed together; a table and a page.")
    parser.add_argument("run", help="Run directory that `equicat train` wrote, of a model trained for s2ef.")
    text = "Structure file of a slab, or a name such as 'Cu(111) 3x3x4': element or bulk file, facet, size and layers."
    parser.add_argument("--slab", type=str | None, default=None, help=text)
    text = "In place of --slab, with --facet and --size: element (Cu), or structure file of a bulk."
    parser.add_argument("--bulk", type=str | None, default=None, help=text)
    parser.add_argument("--facet", type=str | None, default=None, help="Miller indices: 111, or 1,0,-1.")
    parser.add_argument("--size", type=str | None, default=None, help="Repetitions and layers: 3x3x4.")
    text = "Names, smiles:…, or structure files, with commas between; CO+O are two on one slab."
    parser.add_argument("--adsorbates", type=str, required=True, help=text)
    parser.add_argument("--out", required=True, help="Directory for table.csv, structures.extxyz and page.html.")
    parser.add_class_arguments(AdsorptionConfig, None, as_group=False)
    parser.add_argument("--resume", type=bool, default=False, help="Go on where an interrupted run stopped.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Begin anew, and replace what is there.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")
    return parser


def _slab(options: Namespace) -> str:
    """The file or the name of the slab.

    Raises:
        InputError: if it is given twice, or not at all, or in part.
    """
    parts = {"--bulk": options.bulk, "--facet": options.facet, "--size": options.size}
    missing = [name for name, value in parts.items() if value is None]
    if options.slab is not None and len(missing) == 3:
        return options.slab
    if options.slab is not None or missing:
        raise InputError("equicat adsorb: name the slab with --slab, or with --bulk, --facet and --size")
    return f"{options.bulk}({options.facet}) {options.size}"


def _adsorb(options: Namespace) -> None:
    import dataclasses
    import warnings

    from equicat.adsorption.energies import AdsorptionConfig, adsorption_energies

    config = AdsorptionConfig(**{f.name: options[f.name] for f in dataclasses.fields(AdsorptionConfig)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they stand in what is printed
        result = adsorption_energies(
            _slab(options),
            [name.strip() for name in options.adsorbates.split(",") if name.strip()],
            options.run,
            config,
            out=options.out,
            existing="overwrite" if options.overwrite else "resume" if options.resume else "refuse",
            device=options.device,
            progress=options.progress,
        )
    print(result.as_text())
    print(f"\ntable: {Path(options.out) / 'table.csv'}\npage: {Path(options.out) / 'page.html'}")


COMMANDS = {
    "adsorb": Command("adsorption energies on a slab", _parser, _adsorb, with_bare("--resume", "--overwrite")),
}
