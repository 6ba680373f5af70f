"""`equicat adsorb`."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from equicat.cli.command import Command, parser_for, with_bare


def _parser() -> ArgumentParser:
    from equicat.adsorption.energies import AdsorptionConfig

    parser = parser_for("adsorb", "Adsorption energies: placements on a slab, relaxed together; a table and a page.")
    parser.add_argument("run", help="Run directory that `equicat train` wrote, of a model trained for s2ef.")
    text = "Structure file of a slab, or a name such as 'Cu(111) 3x3x4': element or bulk file, facet, size and layers."
    parser.add_argument("--slab", required=True, help=text)
    text = "Names, smiles:…, or structure files, with commas between; CO+O are two on one slab."
    parser.add_argument("--adsorbates", required=True, help=text)
    parser.add_argument("--out", required=True, help="Directory for table.csv, structures.extxyz and page.html.")
    parser.add_class_arguments(AdsorptionConfig, None, as_group=False)
    parser.add_argument("--resume", type=bool, default=False, help="Go on where an interrupted run stopped.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Begin anew, and replace what is there.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0.")
    parser.add_argument("--progress", type=bool, default=True, help="Show a progress bar.")
    return parser


def _adsorb(options: Namespace) -> None:
    import warnings

    from equicat.adsorption.energies import AdsorptionConfig, adsorption_energies

    values = _parser().instantiate(options)
    config = AdsorptionConfig(**{name: values[name] for name in AdsorptionConfig.__dataclass_fields__})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # they are part of what is printed
        result = adsorption_energies(
            options.slab,
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
