"""The templates of pages, beside this module; every text that goes into one is escaped, but for ``Markup``."""

from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from equicat.report.viewer import viewer


@cache
def template(name: str, package: str = "equicat.report") -> Template:
    """The template in that file of a package; it may import those of ``equicat.report``."""
    loaders = [PackageLoader(name, "") for name in dict.fromkeys((package, "equicat.report"))]
    return Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(name)


def style() -> Markup:
    """The style of every page, for a ``<style>``: ``page.css`` and that of structures to turn."""
    return Markup(Path(__file__).with_name("page.css").read_text(encoding="utf-8")) + viewer.style()


def sorting() -> Markup:
    """``sort.js``, for a ``<script>`` at the end of a page: tables of the class ``sortable`` sort."""
    return Markup(Path(__file__).with_name("sort.js").read_text(encoding="utf-8"))
