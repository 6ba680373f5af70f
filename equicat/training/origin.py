"""The data of a run: where they come from, how much there is, and keys by which they are recognised."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equicat.data.datasets import AnyDataset
from equicat.data.identity import TrainedOn
from equicat.data.origin import origin_of
from equicat.files import replace_json
from equicat.run_directory import DATA, TRAINED_ON
from equicat.training.config import TrainConfig


@dataclass(frozen=True)
class Origin:
    """The data of a run, for its directory."""

    description: dict[str, Any]
    """Descriptions of the training and the validation data."""
    keys: TrainedOn | None
    """None if the model saw other data before, and these are not known."""

    @classmethod
    def of(cls, config: TrainConfig, train_set: AnyDataset, val_set: AnyDataset) -> "Origin":
        """The origin of these data; of a run that starts from another one, with what that was trained on."""
        description = {"train": origin_of(train_set), "val": origin_of(val_set)}
        description["val"]["drawn_from_training_data"] = not config.data.val
        keys = TrainedOn.of(train_set, val_set)
        if config.run.init_from is None:
            return cls(description, keys)
        earlier = TrainedOn.read(Path(config.run.init_from) / TRAINED_ON)
        return cls(description, None if earlier is None else keys | earlier)

    def write(self, run: Path) -> None:
        """Write ``data.json`` and ``trained_on.npz``."""
        replace_json(run / DATA, self.description)
        if self.keys is not None:
            self.keys.write(run / TRAINED_ON)
