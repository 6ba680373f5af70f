"""The error that TF32 and bf16 matrix products would add to a trained model's forces, found on any machine.

Operands of all matrix products, forward and backward, are rounded as tensor cores round them; products and sums stay
float32, as theirs do. PyTorch's operators are used, whose products those on a GPU are.

    EQUICAT_NATIVE=0 python benchmarks/rounded_products.py RUN DATA
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from envelope import markdown, table, write
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import equicat
from equicat.data.batch import Batch

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


def tf32(x: Tensor) -> Tensor:
    """The nearest number with ten bits behind the point."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def bf16(x: Tensor) -> Tensor:
    """The nearest number with seven bits behind the point."""
    return x.bfloat16().float()


class Rounded(TorchDispatchMode):
    """Rounds the two factors of every matrix product."""

    def __init__(self, rounding: Callable[[Tensor], Tensor]):
        super().__init__()
        self.rounding, self.count = rounding, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.removeprefix("aten::") in PRODUCTS:
            self.count += 1
            args = (*args[:-2], *(self.rounding(x) for x in args[-2:]))
        return func(*args, **(kwargs or {}))


def main() -> None:
    """A table with a row for each rounding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--json", type=Path, help="file of benchmarks/results for the tables")
    options = parser.parse_args()
    potential = equicat.load(options.run).eval()
    data = equicat.open_dataset(options.data)
    structures = [data[i] for i in range(len(data))]
    free = ~torch.cat([torch.from_numpy(s.fixed) for s in structures])
    labels = torch.cat([torch.from_numpy(s.forces) for s in structures])[free]
    batches = [
        Batch.from_structures(structures[i : i + 8], potential.cutoff, dtype=potential.dtype)
        for i in range(0, len(structures), 8)
    ]

    def forces() -> Tensor:
        return torch.cat([potential(batch).forces.detach() for batch in batches])[free].double()

    exact = forces()
    rows = [("float32", f"{(exact - labels).abs().mean():.5f}", "", "")]
    for name, rounding in {"TF32": tf32, "bf16": bf16}.items():
        with Rounded(rounding) as rounded:
            found = forces()
        assert rounded.count > 0, "no matrix product was rounded; set EQUICAT_NATIVE=0"
        error, change = (found - labels).abs().mean(), (found - exact).abs().mean()
        rows.append((name, f"{error:.5f}", f"{change:.6f}", rounded.count))
    results = table(["factors", "force MAE to the labels [eV/Å]", "to float32 [eV/Å]", "products"], rows)
    size = f"{len(structures)} structures, {len(exact)} free atoms."
    print(f"{markdown(results)}\n{size}")
    if options.json:
        write(options.json, "Forces with rounded matrix products", {"": results}, notes=[size])


if __name__ == "__main__":
    main()
