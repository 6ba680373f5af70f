"""A clear refusal before the operating system's."""

import os

import torch

from equicat.errors import InputError


def total_memory(device: torch.device) -> float:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check_memory(n_bytes: float, device: torch.device, what: str, advice: str) -> None:
    """Refuse a computation that cannot fit.

    Args:
        n_bytes: that it needs, about.
        device: where.
        what: names it.
        advice: what to do instead.

    Raises:
        InputError: if that is more than the device has.
    """
    available = total_memory(device)
    if n_bytes > available:
        gib = 2.0**30
        raise InputError(
            f"{what} needs about {n_bytes / gib:.0f} GiB of memory, this machine has {available / gib:.0f}; {advice}"
        )
