"""Calls in the place of CUDA graphs, for machines without a GPU."""


def computed_again(function, inputs, room):
    """Stands in for a CUDA graph: the same inputs and outputs in memory, and calls in the place of a replay."""
    outputs = function(inputs)

    def replay() -> None:
        for old, new in zip(outputs, function(inputs), strict=True):
            old.copy_(new)

    return replay, outputs
