"""Direct models shown as potentials, so that the checks of potentials apply to them."""

from torch import nn

from equicat.models.direct import DirectModel


class AsPotential(nn.Module):
    """The attributes that the checks ask for; what energy and forces are is said by each kind of model."""

    def __init__(self, direct: DirectModel):
        super().__init__()
        self.direct, self.elements = direct, direct.elements

    @property
    def cutoff(self) -> float:
        return self.direct.cutoff
