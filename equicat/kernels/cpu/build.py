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
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE

import torch

SOURCES = Path(__file__).parent
FLAGS = ("-O2", "-fpeel-loops", "-march=native", "-std=c++17", "-fPIC")
PASSES = (1, 2)
"""Energies and their gradient; the gradients of weights. Each is compiled on its own, which halves the wait."""
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
            objects, made = [str(Path(folder) / f"{number}.o") for number in PASSES], Path(folder) / library.name
            source = str(SOURCES / f"{name}.cpp")
            _run_all(
                [cxx, *flags, f"-DPASS={number}", "-c", source, "-o", compiled]
                for number, compiled in zip(PASSES, objects, strict=True)
            )
            # Linked without -fopenmp: it would bring a second OpenMP with threads of its own beside PyTorch's.
            _run_all([[cxx, "-shared", "-pthread", *objects, "-o", str(made)]])
            made.replace(library)
    return library


def _run_all(commands: Iterable[list[str]]) -> None:
    """Side by side; waits for all of them.

    Raises:
        CalledProcessError: for the first that failed.
    """
    running = [(command, subprocess.Popen(command, stdout=DEVNULL, stderr=PIPE, text=True)) for command in commands]
    ended = [(command, process.communicate()[1], process.returncode) for command, process in running]
    for command, errors, code in ended:
        if code:
            raise subprocess.CalledProcessError(code, command, stderr=errors)


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
