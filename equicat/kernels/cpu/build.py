"""Kernels in C++, compiled on first use by the compiler of the machine and kept in the user's cache.

PyTorch's operators compute the same, more slowly: without a compiler nothing is missing but speed.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
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
"""Halves of a source file, compiled side by side: functions on numbers, and on dual numbers."""
REALS = {torch.float32: "float", torch.float64: "double"}
MAX_DEGREE = 4
"""Largest l_max that is compiled (``MAX_DEGREE`` in ``numbers.h``)."""
MESSAGE_SIZE = 256
"""Bytes of an error message (``MESSAGE_SIZE`` in ``threads.h``)."""
OUT_OF_MEMORY = 1
"""Status of a function that could not allocate memory (``Status`` in ``threads.h``); 0 is success."""


class Unsafe(Exception):
    """Somebody else could have written a file that would be loaded into this process."""


def compiler() -> str | None:
    """The C++ compiler: that of the environment's ``CXX``, or a usual name."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))), None)


def cache_directory() -> Path:
    """Where compiled kernels are kept: ``equicat`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "equicat"


def _processor() -> str:
    """The processor as far as ``-march=native`` depends on it: machines that differ may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _threads(version: str) -> str:
    """The flag for threads: PyTorch's OpenMP where it is GNU's, as the compiler is, or its equal; else our own."""
    gnu = "Free Software Foundation" in version and getattr(ctypes.CDLL(None), "GOMP_parallel", None) is not None
    return "-fopenmp" if gnu else "-pthread"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _require_own(path: Path) -> None:
    """Check that only this user (or root) can have written a file or folder.

    Raises:
        Unsafe: if it belongs to someone else, others may write to it, or it is a link.
    """
    found = path.lstat()
    if found.st_uid not in (os.getuid(), 0) or stat.S_ISLNK(found.st_mode):
        raise Unsafe(f"{path} does not belong to this user; remove it, or set XDG_CACHE_HOME to a folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unsafe(f"others may write to {path}; run: chmod go-w {path}")


def _library(name: str, flavour: str, real: str, cxx: str | None) -> Path | None:
    """The shared library, compiled unless it is there; without a compiler the newest that was compiled earlier.

    Its name has two digests: of the sources, flags and processor, and of the compiler.
    """
    directory = cache_directory()
    if directory.exists() or cxx is not None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(directory)
    sources = "".join(path.read_text() for path in sorted(SOURCES.iterdir()) if path.suffix in (".h", ".cpp"))
    stem = f"{name}{flavour}_{real}_{_digest(sources, *FLAGS, platform.machine(), _processor())}"
    if cxx is None:
        found = max(directory.glob(f"{stem}_*.so"), key=lambda path: path.lstat().st_mtime, default=None)
    else:
        version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout
        flags = [*FLAGS, f"-DREAL={real}", f"-DFLAVOUR={flavour}", _threads(version)]
        found = directory / f"{stem}_{_digest(version, *flags)}.so"
        if not found.exists():
            _compile(name, cxx, flags, found)
    if found is not None:
        _require_own(found)
    return found


def _compile(name: str, cxx: str, flags: list[str], library: Path) -> None:
    print(
        f"equicat: compiling the kernel {name} for this processor (some seconds, once) …", file=sys.stderr, flush=True
    )
    # Processes that start together may all compile; each renames its own file to the same name.
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        objects, made = [str(Path(folder) / f"{number}.o") for number in PASSES], Path(folder) / library.name
        source = str(SOURCES / f"{name}.cpp")
        run_all(
            [cxx, *flags, f"-DPASS={number}", "-c", source, "-o", compiled]
            for number, compiled in zip(PASSES, objects, strict=True)
        )
        # Linked without -fopenmp: it would bring a second OpenMP with threads of its own beside PyTorch's.
        run_all([[cxx, "-shared", "-pthread", *objects, "-o", str(made)]])
        made.chmod(0o700)
        made.replace(library)


def run_all(commands: Iterable[list[str]]) -> None:
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
def load(
    name: str, dtype: torch.dtype, structures: tuple[type[ctypes.Structure], ...] = (), flavour: str = ""
) -> ctypes.CDLL | None:
    """The compiled ``name.cpp``, or None where it cannot be had (with a warning, unless there is no compiler).

    Args:
        name: of the source file.
        dtype: float32 or float64; None is returned for others.
        structures: what is passed by reference, in the order of ``structure_sizes`` in the source.
        flavour: class that the source is compiled for, if it leaves a choice.

    Raises:
        RuntimeError: if a structure has another size in C++.
    """
    if dtype not in REALS:
        return None
    try:
        path = _library(name, flavour, REALS[dtype], compiler())
        if path is None:
            return None
        library = ctypes.CDLL(str(path))
    except (subprocess.CalledProcessError, OSError, Unsafe) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        text = (
            f"the kernel {name} could not be compiled or loaded, PyTorch's slower operators are used: {' '.join(last)}"
        )
        warnings.warn(text, stacklevel=2)
        return None
    sizes = (ctypes.c_int64 * len(structures)).in_dll(library, "structure_sizes") if structures else ()
    for structure, size in zip(structures, sizes, strict=True):
        if ctypes.sizeof(structure) != size:
            raise RuntimeError(
                f"{name}.cpp and its Python disagree about {structure.__name__}: {size} and "
                f"{ctypes.sizeof(structure)} bytes"
            )
    return library


def call(library: ctypes.CDLL, function: str, argument: ctypes.Structure) -> None:
    """Call a function that takes a structure and says whether it succeeded.

    Raises:
        MemoryError: if memory did not suffice.
        RuntimeError: if it failed otherwise, with its reason.
    """
    message = ctypes.create_string_buffer(MESSAGE_SIZE)
    status = getattr(library, function)(ctypes.byref(argument), message)
    if status:
        error = MemoryError if status == OUT_OF_MEMORY else RuntimeError
        raise error(f"the kernel's {function} failed: {message.value.decode(errors='replace')}")
