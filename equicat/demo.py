"""`equicat demo`: the whole main job on data that it makes itself, in minutes on two cores."""

import time
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from equicat.config import from_mapping
from equicat.describe import describe
from equicat.emt import EMTConfig, make_emt_dataset, summary_text
from equicat.evaluate import as_text, evaluate
from equicat.report import write_report
from equicat.train import train

DATA = EMTConfig(n_systems=100, metals=("Cu", "Pd", "Ag", "Au"))


def demo(
    out: Path, *, overwrite: bool = False, data: EMTConfig = DATA, overrides: dict[str, Any] | None = None
) -> Path:
    """Make data, train, evaluate on four splits, write the report.

    Args:
        out: gets ``data`` and ``run``.
        overwrite: replace what is there.
        data: what to make.
        overrides: of the training configuration, by part: ``{"run": {"max_epochs": 2}}``.

    Returns:
        The report.

    Raises:
        InputError: if something is there already and ``overwrite`` is False.
    """
    started = time.monotonic()

    def headline(step: int, text: str) -> None:
        print(f"\n[{step}/4] {text}  ({(time.monotonic() - started) / 60:.1f} min so far)", flush=True)

    headline(1, f"data: {data.n_systems} relaxations of adsorbates on metal slabs, with ASE's EMT potential")
    summary = make_emt_dataset(out / "data", data, overwrite=overwrite)
    print(summary_text(summary))
    print(describe(out / "data" / "s2ef" / "train"))

    values = yaml.safe_load((resources.files("equicat") / "demo.yaml").read_text(encoding="utf-8"))
    values["data"] = {"train": [str(out / "data")], "val": [str(out / "data")]}
    values["run"] |= {"out": str(out / "run"), "overwrite": overwrite}
    for part, options in (overrides or {}).items():
        values[part] |= options
    headline(2, "train: a small Allegro on energies and forces")
    result = train(from_mapping(values, "demo.yaml"))

    headline(3, "evaluate: unseen systems, then unseen adsorbates and catalysts")
    print(as_text(evaluate(result.run, out / "data", progress=False)))

    headline(4, "report")
    report = write_report(result.run)
    print(f"open {report} in a browser; in Python:")
    print(f"    equicat.Calculator({str(result.run)!r})   # for ASE")
    print(f"    equicat.load({str(result.run)!r})         # the PyTorch module")
    return report
