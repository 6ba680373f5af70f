"""Built-in configurations: files of `equicat/presets`, by name from any folder."""

from pathlib import Path

from equicat.errors import InputError, nearest

FOLDER = Path(__file__).parents[1] / "presets"


def presets() -> dict[str, Path]:
    """The built-in configurations by name: their path in the folder, and for a folder's name its Allegro."""
    files = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
    return files | {name.removesuffix("/allegro"): path for name, path in files.items() if name.endswith("/allegro")}


def find_configuration(name: str) -> Path:
    """The configuration file of that path, or else the built-in one of that name.

    Raises:
        InputError: if there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = presets()
    if name in known:
        return known[name]
    raise InputError(
        f"{name}: cannot read the configuration: no such file, and no built-in one of that name{nearest(name, known)}; "
        "`equicat train --help` names them"
    )
