"""`equicat demo`: the whole main job on data that it makes itself, in minutes on two cores."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equicat.apply import evaluate_relaxations as relaxations
from equicat.apply.evaluate import evaluate
from equicat.apply.results import as_text
from equicat.options.text import read_yaml
from equicat.report.page import write_report
from equicat.sources.describe import describe
from equicat.sources.emt.make import EMTConfig, make_emt_dataset, summary_text
from equicat.training.config import TrainConfig, from_mapping
from equicat.training.presets import find_configuration
from equicat.training.train import train


@dataclass(frozen=True)
class Reports:
    """The pages that the demo writes."""

    s2ef: Path
    direct: Path


DATA = EMTConfig(n_systems=100, metals=("Cu", "Pd", "Ag", "Au"))
S2EF_MINUTES, DIRECT_MINUTES = 4.0, 1.5
"""How long the two trainings take."""


def demo(
    out: Path, *, overwrite: bool = False, data: EMTConfig = DATA, overrides: dict[str, Any] | None = None
) -> Reports:
    """Make data, train all three tasks, evaluate on four splits, relax with the S2EF model, write the reports.

    Args:
        out: gets ``data``, ``run`` (S2EF) and ``run_direct`` (IS2RE and IS2RS together).
        overwrite: replace what is there.
        data: what to make.
        overrides: of both training configurations, by part: ``{"run": {"max_epochs": 2}}``.

    Returns:
        The pages.

    Raises:
        InputError: if something is there already and ``overwrite`` is False.
    """
    started = time.monotonic()

    def headline(step: int, text: str) -> None:
        print(f"\n[{step}/6] {text}  ({(time.monotonic() - started) / 60:.1f} min so far)", flush=True)

    headline(1, f"data: {data.n_systems} relaxations of adsorbates on metal slabs, with ASE's EMT potential")
    summary = make_emt_dataset(out / "data", data, overwrite=overwrite)
    print(summary_text(summary))
    print(describe(out / "data" / "s2ef" / "train"))

    def configured(name: str, run: str, minutes: float) -> TrainConfig:
        values = read_yaml(find_configuration(name)) | {"data": str(out / "data")}
        values["run"] |= {"out": str(out / run), "overwrite": overwrite, "max_minutes": minutes}
        for part, options in (overrides or {}).items():
            values[part] |= options
        return from_mapping(values, name)

    headline(2, "S2EF: train a small Allegro on energies and forces")
    s2ef = train(configured("small", "run", S2EF_MINUTES)).run
    headline(3, "evaluate: unseen systems, then unseen adsorbates and catalysts")
    print(as_text(evaluate(s2ef, out / "data", progress=False)))

    headline(4, "IS2RE and IS2RS: relaxed energy and structure straight from the initial structure")
    direct = train(configured("demo_direct", "run_direct", DIRECT_MINUTES)).run
    print(as_text(evaluate(direct, out / "data", progress=False)))

    headline(5, "IS2RE and IS2RS by relaxing with the S2EF model, beside the direct one")
    beside = relaxations.Beside(direct, minus_clean_slab=True)
    relaxed = relaxations.evaluate_relaxations(s2ef, out / "data", beside=beside, device="auto", progress=False)
    print(relaxations.as_text(relaxed))

    headline(6, "reports")
    shown = ("data", "data-relax")
    reports = Reports(write_report(s2ef, evaluations=shown), write_report(direct, evaluations=("data",)))
    print(f"open {reports.s2ef}\nand  {reports.direct} in a browser; in Python:")
    print(f"    equicat.Calculator({str(s2ef)!r})   # for ASE")
    print(f"    equicat.load({str(direct)!r})   # the PyTorch module")
    return reports
