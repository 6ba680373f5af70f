"""Checkpoints of training: written so that they outlive a kill, a full disk and their own damage."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from equicat.files import replacing_file, writing_to
from equicat.run_directory import CHECKSUM, LAST, PREVIOUS, digest


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes a checkpoint of a run: complete, on the disk, with a checksum of its content.

    A new ``last.ckpt`` makes the one before ``previous.ckpt``; with ``best.ckpt`` there are never more than three.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: dict[str, Any] | None = None
    ) -> None:
        """Write a checkpoint under its name when it is complete.

        Args:
            checkpoint: tensors and plain values.
            path: of the file.
            storage_options: not used; Lightning's signature has it.

        Raises:
            InputError: if the disk is full or the place cannot be written to; what was there stays.
        """
        path = Path(path)
        content = io.BytesIO()
        torch.save({**checkpoint, CHECKSUM: digest(checkpoint)}, content)
        with writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing_file(path) as temporary:
                with temporary.open("wb") as file:
                    file.write(content.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                if path.name == Path(LAST).name and path.is_file():
                    os.replace(path, path.with_name(Path(PREVIOUS).name))


def random_state() -> dict[str, Any]:
    """State of PyTorch's random generators, from which everything that is drawn in training comes."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"processor": torch.get_rng_state(), "devices": devices}


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers of :func:`random_state`; devices that were not there keep their own."""
    torch.set_rng_state(state["processor"])
    if torch.cuda.is_available() and len(state["devices"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["devices"])


def from_the_start_of_the_epoch(checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint of the middle of an epoch go on where this epoch began, in its batches and nothing else.

    Lightning counts ready, started, processed and completed batches; all of them equal means that none is under way.
    """
    batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["processed"])
    batches["is_last_batch"] = False
