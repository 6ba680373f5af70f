"""RESULTS.md from the measurements in ``results``, so that no number is copied by hand.

    python benchmarks/tables.py            # write RESULTS.md anew
    python benchmarks/tables.py --check    # exit status 1 if RESULTS.md is not what the measurements say

Each file of ``results`` is a measurement in an envelope (``envelope.py``):

    {"title": …, "kind": …, "command": [lines], "machine": …, "notes": [sentences], "results": {…}}

The kind says how ``results`` are shown: ``speed``, ``scaling`` and ``data`` as `equicat bench` prints them, ``splits``
as `equicat evaluate` does, ``tables`` as a table for each heading: ``{heading: {"columns": […], "rows": [[…], …]}}``.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from envelope import KINDS, markdown

from equicat.bench import data
from equicat.bench.report import scaling_text, speed_text
from equicat.errors import InputError
from equicat.files import read_json
from equicat.tasks.tables import format_table

HERE = Path(__file__).parent
HEAD = """# Measured results

Made by `python benchmarks/tables.py` from `benchmarks/results/*.json`; each table names the command that measured it.
How the package came to be as fast and as accurate as this, on which machines, and what did not work, is told in the
[log](LOG.md).
"""
PARTS: dict[str, type] = {"title": str, "kind": str, "command": list, "machine": str, "notes": list, "results": dict}
"""Parts of an envelope, and their types in JSON."""


def splits(results: Mapping[str, Any]) -> str:
    """One table for each split of an evaluation, preformatted."""
    parts = [f"{name}\n{format_table(split['rows'])}" for name, split in results["splits"].items()]
    return preformatted("\n\n".join(parts))


def tables(results: Mapping[str, Any]) -> str:
    """Markdown tables under their headings; an empty heading is left out."""
    return "\n\n".join(f"### {heading}\n\n{markdown(t)}" if heading else markdown(t) for heading, t in results.items())


def preformatted(text: str) -> str:
    """The text in a block that keeps its columns."""
    return f"```text\n{text}\n```"


SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "speed": lambda results: preformatted(speed_text(results)),
    "scaling": lambda results: preformatted(scaling_text(results)),
    "data": lambda results: preformatted(data.as_text(results)),
    "splits": splits,
    "tables": tables,
}
assert set(SHOWN) == set(KINDS)


def measurement(path: Path) -> dict[str, Any]:
    """The content of a file of ``results``.

    Raises:
        InputError: naming the part of the envelope that is missing or of another form.
    """
    found = read_json(path)
    for part, form in PARTS.items():
        if not isinstance(found.get(part), form) or not (found[part] or part == "notes"):
            raise InputError(f"{path}: no {part} ({form.__name__}); write it with benchmarks/envelope.py")
    if found["kind"] not in KINDS:
        raise InputError(f"{path}: kind is {found['kind']!r}; it must be one of {', '.join(KINDS)}")
    return found


def section(found: Mapping[str, Any]) -> str:
    """One measurement as Markdown."""
    command = "\n".join(found["command"])
    parts = [
        f"## {found['title']}",
        f"```bash\n{command}\n```",
        SHOWN[found["kind"]](found["results"]),
        " ".join([f"Machine: {found['machine']}.", *found["notes"]]),
    ]
    return "\n\n".join(parts)


def page(folder: Path) -> str:
    """The whole of RESULTS.md, from the measurements in a folder."""
    return "\n\n".join([HEAD.rstrip(), *(section(measurement(path)) for path in sorted(folder.glob("*.json")))]) + "\n"


def main() -> int:
    """Write or check RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    try:
        text = page(HERE / "results")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    out = HERE / "RESULTS.md"
    if check:
        return int(out.read_text(encoding="utf-8") != text)
    out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
