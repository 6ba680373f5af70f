"""The Triton kernels compile for a GPU that need not be there. Their numbers: ``tests/kernels/test_forms.py``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (Linux only)")


@pytest.mark.parametrize(
    ("l_max", "channels", "dtype"),
    [
        (2, 32, "float32"),
        pytest.param(0, 1, "float64", marks=pytest.mark.slow),
        pytest.param(0, 1, "float32", marks=pytest.mark.slow),
        pytest.param(3, 32, "float32", marks=pytest.mark.slow),
        pytest.param(3, 32, "float64", marks=pytest.mark.slow),
    ],
)
def test_they_compile_for_a_gpu(tmp_path, l_max, channels, dtype):
    """By the path that a call takes on a machine with a GPU, up to the launch; in float32 registers hold everything."""
    kernels = compiled(tmp_path, l_max, channels, dtype)
    names = ["_environment", "_read_out", *["_gradient"] * 3, *["_change"] * 2, "_fill", *["_derivative"] * 3]
    assert [f["kernel"] for f in kernels] == names
    if dtype == "float32":
        assert all(f.get("spilled", 0) == f.get("stack", 0) == 0 for f in kernels)


@pytest.mark.slow
def test_those_of_whole_networks_compile_for_a_gpu(tmp_path):
    """Registers hold everything but a few numbers, and what sines and cosines of large arguments need."""
    kernels = compiled(tmp_path, 1, 32, "whole")
    products = ["_rows", "_split", "_split", "_rows", "_split", "_split", "_columns"]
    hidden = [*["_split"] * 2, "_hidden", *["_split"] * 2, "_hidden_back", *["_hidden_moving"] * 2, *["_sums"] * 2]
    narrow = ["_embed", "_embed_back", "_embed_by_weights"]
    embedding = ["_embed", "_embed_back", "_embed_moving", "_embed_by_weights", *narrow]
    whole = [*embedding, *hidden, "_read", "_read_moving", "_contract", "_split"]
    trained = ["_slope_back", "_by_weights", "_forwards", "_backwards", "_moving"]
    assert [f["kernel"] for f in kernels] == [*whole, *products, *trained, "_vectors"]
    assert all(f.get("spilled", 0) == 0 for f in kernels)
    waves = {*embedding, "_forwards", "_backwards", "_moving"}
    limits = dict.fromkeys(waves, 64) | {"_rows": 32}
    assert all(f.get("stack", 0) <= limits.get(f["kernel"], 8) for f in kernels)


def compiled(tmp_path: Path, l_max: int, channels: int, dtype: str) -> list[dict]:
    """Resources that each kernel takes, for Hopper."""
    program = Path(__file__).parent / "triton_compile.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(program), "90", str(l_max), str(channels), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(f["bytes"] > 1000 for f in found)
    return found
