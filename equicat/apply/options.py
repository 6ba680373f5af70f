"""How a trained model is applied to data, whichever command does it."""

from dataclasses import dataclass

from equicat.errors import InputError
from equicat.models.domain import Action
from equicat.models.model import ModelInfo
from equicat.options.values import Checked, Device, Positive


@dataclass(frozen=True)
class ApplyOptions(Checked):
    """Options that evaluation and prediction have in common."""

    batch_size: Positive = 16
    """Structures computed together."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    progress: bool = True
    """Show a progress bar."""
    outside_training: Action = "warn"
    """Treatment of structures unlike those of the training data: warn, error or ignore."""
    minus_clean_slab: bool = False
    """Take the model's own energy of each slab without its adsorbate (tag 2) off; for adsorption energies."""

    def check(self, info: ModelInfo) -> None:
        """Make sure that the options make sense for a model.

        Raises:
            InputError: if a clean slab is to be taken off energies that are no adsorption energies.
        """
        if not self.minus_clean_slab:
            return
        if info.energy_reference != "adsorption":
            raise InputError(
                f"minus_clean_slab: is for adsorption energies, of which a clean slab has none; this model predicts "
                f"{info.energy_reference} energies; leave the option out"
            )
        if info.outputs == ("displacements",):
            raise InputError("minus_clean_slab: this model predicts no energies; leave the option out")
