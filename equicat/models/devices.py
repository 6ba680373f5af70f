"""The devices that a model computes on, by the names that users give."""

import os
from pathlib import Path

import torch

from equicat.errors import InputError
from equicat.options.values import Device, read_value

MAX_PROCESSES_A_PROCESSOR = 8
"""More processes that train than this, for each processor, are taken for a slip."""


def n_gpus() -> int:
    """How many GPUs PyTorch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def torch_device(name: str | torch.device) -> torch.device:
    """The device of that name; ``auto`` is a GPU if PyTorch can use one, else the processor.

    Raises:
        InputError: for another name than auto, cpu, cuda or cuda:N, or a GPU that is not there.
    """
    if isinstance(name, torch.device):
        return name
    name = read_value("device", name, Device)
    if name == "auto":
        name = "cuda" if n_gpus() else "cpu"
    device = torch.device(name)
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # each process that torchrun started has a GPU of its own
        device = torch.device(name, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda" and (device.index or 0) >= n_gpus():
        raise InputError(f"device is {device}, but PyTorch can use {n_gpus()} GPUs here; take cpu, or auto")
    return device


def require_devices(accelerator: str, devices: str | int) -> None:
    """Make sure that the devices that a training asks for are there.

    Args:
        accelerator: auto, cpu or gpu, as in ``run.accelerator``.
        devices: auto or a number, as in ``run.devices``.

    Raises:
        InputError: naming the option, if they are not.
    """
    gpus = n_gpus() or int(torch.backends.mps.is_available())
    if accelerator == "gpu" and not gpus:
        raise InputError("run.accelerator is gpu, but PyTorch can use no GPU here; take cpu, or auto")
    if isinstance(devices, int) and accelerator != "cpu" and 0 < gpus < devices:
        raise InputError(f"run.devices is {devices}, but PyTorch can use {gpus} GPUs here")
    processors = os.cpu_count() or 1
    if isinstance(devices, int) and devices > max(gpus, MAX_PROCESSES_A_PROCESSOR * processors):
        raise InputError(f"run.devices is {devices}, but this machine has {processors} processors")


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still have: of the GPU, with what PyTorch keeps of it for later; or of the computer
    (Linux)."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return 1024 * kilobytes("/proc/meminfo", "MemAvailable")


def kilobytes(path: str, name: str) -> int:
    """A line such as ``VmRSS:  1234 kB`` of a file of Linux."""
    lines = Path(path).read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
