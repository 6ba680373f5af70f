"""RESULTS.md from the measurements in ``results``, so that no number is copied by hand.

    python benchmarks/tables.py            # write RESULTS.md anew
    python benchmarks/tables.py --check    # exit status 1 if RESULTS.md is not what the measurements say

Each file of ``results`` is what a command wrote with ``--json``, in an envelope:

    {"title": …, "kind": …, "command": [lines], "machine": …, "notes": [sentences], "results": {…}}

The kind says how ``results`` are shown: ``speed`` and ``scaling`` as `equicat bench` prints them, ``splits`` as
`equicat evaluate` does, ``table`` as ``{"columns": […], "rows": [[…], …]}``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from equicat.bench.report import scaling_text, speed_text
from equicat.tasks.tables import format_table

HERE = Path(__file__).parent
HEAD = """# Measured results

Made by `python benchmarks/tables.py` from `benchmarks/results/*.json`; each table names the command that measured it.
How the package came to be as fast and as accurate as this, on which machines, and what did not work, is told in the
[log](LOG.md).
"""


def splits(results: Mapping[str, Any]) -> str:
    """One table for each split of an evaluation, preformatted."""
    parts = [f"{name}\n{format_table(split['rows'])}" for name, split in results["splits"].items()]
    return preformatted("\n\n".join(parts))


def table(results: Mapping[str, Any]) -> str:
    """A Markdown table."""
    head = f"| {' | '.join(results['columns'])} |\n|{'---|' * len(results['columns'])}"
    return "\n".join([head, *(f"| {' | '.join(map(str, row))} |" for row in results["rows"])])


def preformatted(text: str) -> str:
    """The text in a block that keeps its columns."""
    return f"```text\n{text}\n```"


KINDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "speed": lambda results: preformatted(speed_text(results)),
    "scaling": lambda results: preformatted(scaling_text(results)),
    "splits": splits,
    "table": table,
}


def section(measurement: Mapping[str, Any]) -> str:
    """One measurement as Markdown."""
    command = "\n".join(measurement["command"])
    parts = [
        f"## {measurement['title']}",
        f"```bash\n{command}\n```",
        KINDS[measurement["kind"]](measurement["results"]),
        " ".join([f"Machine: {measurement['machine']}.", *measurement.get("notes", [])]),
    ]
    return "\n\n".join(parts)


def main() -> int:
    """Write or check RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    files = sorted((HERE / "results").glob("*.json"))
    sections = [section(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    text = "\n\n".join([HEAD.rstrip(), *sections]) + "\n"
    out = HERE / "RESULTS.md"
    if check:
        return int(out.read_text(encoding="utf-8") != text)
    out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
