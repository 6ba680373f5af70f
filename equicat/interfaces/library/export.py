"""A model as a folder of compiled libraries: with our kernel inside, and without PyTorch or this package.

The folder has the model's numbers (``model.bin``), the kernel of its network for several generations of processors, a
library that chooses among them and finds pairs (``model.cpp``), its C header, and a Python file that calls it.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from equicat.errors import InputError
from equicat.files import replacing_directory, write_json
from equicat.interfaces.agreement import compare, examples
from equicat.interfaces.library import equicat_model
from equicat.interfaces.library.pack import pack
from equicat.kernels.cpu import build
from equicat.models.potential import Potential
from equicat.networks.catalogue import architecture

HERE = Path(__file__).parent
PROCESSORS = {"x86-64-v4": ("-march=x86-64-v4",), "x86-64-v3": ("-march=x86-64-v3",), "generic": ()}
"""Generations of processors that kernels are compiled for, the fastest first, and the compiler's flags. The same names
stand in ``model.cpp``: with AVX-512, with AVX2, and any processor of the kind."""
FILES = ("equicat_model.h", "equicat_model.py")
"""Files that are copied into the folder as they are."""


def export(potential: Potential, out: Path) -> None:
    """Write the folder, once each of its kernels that this processor can run gives the numbers of the model.

    Args:
        potential: an Allegro model of energies and their gradient, on a CPU. Without ``kernels`` in its
            ``ComputeOptions`` its own numbers, which the library's are compared with, come from PyTorch's operators.
        out: folder to write, which must not exist.

    Raises:
        InputError: for another model, an existing folder, a missing compiler, or numbers that differ.
    """
    kernel = architecture(potential.config.name).kernel
    if kernel is None or potential.direct_forces is not None:
        raise InputError(
            f"this model is {potential.config.name} with {potential.info.force_head} forces; Allegro models of "
            "energies and their gradient can be a library"
        )
    if potential.long_range is not None:
        raise InputError("this model has latent charges (long_range), which a library cannot have")
    if (l_max := potential.network.config.l_max) > build.MAX_DEGREE:
        raise InputError(f"model.l_max is {l_max}; the kernel goes to {build.MAX_DEGREE}")
    with replacing_directory(out) as folder:
        pack(potential, kernel, folder / "model.bin")
        processors = compile_libraries(folder, potential.dtype, kernel.flavour)
        for name in FILES:
            shutil.copy(HERE / name, folder)
        info = potential.info
        about = {
            "made_by": "equicat",
            "units": "Å, eV, eV/Å",
            "cutoff": potential.cutoff,
            "elements": info.element_symbols,
            "dtype": info.dtype,
            "energy_reference": info.energy_reference,
            "system": f"{platform.system()} {platform.machine()}",
            "processors": processors,
        }
        write_json(folder / "about.json", about)
        check(potential, folder, processors)


def compile_libraries(folder: Path, dtype: torch.dtype, flavour: str) -> list[str]:
    """Compile the library and its kernels, side by side.

    Args:
        folder: to write them to.
        dtype: float32 or float64.
        flavour: class of the network in C++.

    Returns:
        The processors that there is a kernel for.

    Raises:
        InputError: without a compiler, or with its message if it fails.
    """
    cxx = build.compiler()
    if cxx is None:
        raise InputError("there is no C++ compiler; install one (g++ or clang++), or name it in the variable CXX")
    flags = [flag for flag in build.FLAGS if not flag.startswith("-march")]
    flags += ["-shared", "-pthread", f"-DREAL={build.REALS[dtype]}", f"-DFLAVOUR={flavour}", "-DPASS=1"]
    if sys.platform == "linux":  # else the C++ library of this machine must be on the other one
        flags += ["-static-libstdc++", "-static-libgcc", f"-Wl,--version-script={HERE / 'exports.map'}"]
    processors = [name for name in PROCESSORS if platform.machine() == "x86_64" or not PROCESSORS[name]]
    jobs = [(build.SOURCES / "allegro.cpp", f"kernel-{name}.so", PROCESSORS[name]) for name in processors]
    jobs.append((HERE / "model.cpp", equicat_model.LIBRARY, (f"-I{build.SOURCES}", "-ldl")))
    print(f"equicat: compiling {len(jobs)} libraries (some seconds) …", file=sys.stderr, flush=True)
    try:
        build.run_all([cxx, *flags, str(source), "-o", str(folder / name), *more] for source, name, more in jobs)
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[-200:])
        raise InputError(f"{cxx} could not compile the library: {reason}") from error
    return processors


def check(potential: Potential, folder: Path, processors: list[str]) -> None:
    """Compare the kernels in a folder, all that this processor can run, with the model.

    Raises:
        InputError: for numbers that differ, or if nothing can be run.
    """
    structures = examples(potential, 3)
    refused = []
    for processor in processors:
        try:
            model = equicat_model.Model(folder, processor, n_threads=1)
        except equicat_model.Failed as error:
            refused.append(str(error))
            continue
        found = [model.compute(s.numbers, s.positions, s.cell, s.pbc) for s in structures]
        compare(potential, structures, np.array([f.energy for f in found]), np.concatenate([f.forces for f in found]))
    if len(refused) == len(processors):
        raise InputError(f"the library does not run: {refused[-1]}")
