"""The templates of pages, beside this module; every text that goes into one is escaped, but for ``Markup``."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


@cache
def template(name: str) -> Template:
    """The template in that file."""
    return Environment(
        loader=PackageLoader("equicat.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)
