"""Kernels in C++, compiled on first use by the compiler of the machine and kept in the user's cache.

What they compute, PyTorch's operators compute as well, more slowly: without a compiler nothing is missing but speed.
``EQUICAT_NATIVE=0`` in the environment turns them off.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
FLAGS = ("-O2", "-fpeel-loops", "-march=native", "-std=c++17", "-fPIC")
REALS = {torch.float32: "float", torch.float64: "double"}


def compiler() -> str | None:
    """The C++ compiler: that of the environment's ``CXX``, or a usual name."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))), None)


def cache_directory() -> Path:
    """Where compiled kernels are kept: ``equicat`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equicat"


def _processor() -> str:
    """What ``-march=native`` depends on: a home directory may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _threads(version: str) -> str:
    """The flag for threads: PyTorch's OpenMP where it is GNU's, as the compiler is, or its equal; else our own."""
    gnu = "Free Software Foundation" in version and getattr(ctypes.CDLL(None), "GOMP_parallel", None) is not None
    return "-fopenmp" if gnu else "-pthread"


def _build(name: str, real: str, cxx: str, directory: Path) -> Path:
    """The shared library, compiled unless it is there."""
    sources = "".join(path.read_text() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp"))
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
    flags = [*FLAGS, f"-DREAL={real}", _threads(version)]
    key = hashlib.sha256("\0".join([sources, version, *flags, platform.machine(), _processor()]).encode())
    library = directory / f"{name}_{real}_{key.hexdigest()[:16]}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        # Processes that start together may all compile; each renames its own file to the same name.
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            compiled, made = Path(folder) / f"{name}.o", Path(folder) / library.name
            # Linked without -fopenmp: it would bring a second OpenMP with threads of its own beside PyTorch's.
            for command in (
                [cxx, *flags, "-c", str(SOURCES / f"{name}.cpp"), "-o", str(compiled)],
                [cxx, "-shared", "-pthread", str(compiled), "-o", str(made)],
            ):
                subprocess.run(command, capture_output=True, text=True, check=True)
            made.replace(library)
    return library


@cache
def load(name: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The compiled ``name.cpp``, or None where there is no compiler, or it fails (then with a warning).

    Args:
        name: of the source file.
        dtype: float32 or float64; None is returned for others.
    """
    cxx = compiler()
    if os.environ.get("EQUICAT_NATIVE") == "0" or cxx is None or dtype not in REALS:
        return None
    try:
        return ctypes.CDLL(str(_build(name, REALS[dtype], cxx, cache_directory())))
    except (subprocess.CalledProcessError, OSError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        warnings.warn(
            f"the kernel {name} could not be compiled by {cxx}, PyTorch's slower operators are used: {' '.join(last)}",
            stacklevel=2,
        )
        return None
