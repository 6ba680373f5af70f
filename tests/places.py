"""Where tests find files: those of the repository, and real data that are not part of it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "tests" / "fixtures"

REAL_DATA = Path(os.environ.get("EQUICAT_REAL_DATA", "EQUICAT_REAL_DATA is not set"))
"""Folder with ``data/`` (DFT data sets) and ``fixtures/oc20_formats`` (samples of OC20's formats); see CONTRIBUTING."""
DFT_DATA = REAL_DATA / "data"
OC20_SAMPLES = REAL_DATA / "fixtures" / "oc20_formats"

needs_dft_data = pytest.mark.skipif(
    not DFT_DATA.is_dir(), reason="real DFT data: EQUICAT_REAL_DATA names no folder with data/ in it"
)
needs_oc20_samples = pytest.mark.skipif(
    not OC20_SAMPLES.is_dir(), reason="OC20 samples: EQUICAT_REAL_DATA names no folder with fixtures/oc20_formats in it"
)
