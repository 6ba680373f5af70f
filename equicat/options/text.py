"""YAML as text: nothing becomes a number or a boolean before the type of its option says so.

YAML 1.1 reads NO (nitric oxide), No (nobelium), y and off as booleans and 1e5 as text; here all scalars but null are
text, and :func:`equicat.options.values.read_value` makes of them what the option is.
"""

from pathlib import Path
from typing import Any

import yaml

from equicat.errors import InputError


class _TextLoader(yaml.SafeLoader):
    """Reads scalars as text, except null and the merge key ``<<``."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_text(text: str) -> Any:
    """Lists and mappings of text.

    Raises:
        YAMLError: if the text is no YAML.
    """
    return yaml.load(text, _TextLoader)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A configuration file as a mapping of lists, mappings and text.

    Raises:
        InputError: if the file is missing or is not a mapping.
    """
    try:
        values = load_text(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"{path}: cannot read the configuration ({reason})") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: a configuration is a mapping of keys to values, found {type(values).__name__}")
    return values
