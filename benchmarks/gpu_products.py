"""Measures the GPU's kernels, each beside the one that it replaces: errors against float64, milliseconds, launches.

python benchmarks/gpu_products.py [--json FILE] [--only PART …]
"""

import argparse
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from envelope import table, write
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from equicat.bench.peers.worker import loss
from equicat.bench.speed import SIZES, our_config, slabs
from equicat.data.batch import Batch
from equicat.data.structure import Structure
from equicat.kernels.gpu import environment, hidden, products, sums
from equicat.kernels.products import split_products
from equicat.models.potential import Potential
from equicat.networks.allegro import AllegroConfig, NequipAllegroConfig

DEVICE = torch.device("cuda")
SMALL = {"n_layers": 2, "two_body_mlp": (64, 64), "latent_mlp": (64,), "avg_num_neighbors": 48.0}
CONFIGS = {
    "small": lambda: NequipAllegroConfig(**our_config(SIZES["small"])),
    "paper": lambda: NequipAllegroConfig(**our_config(SIZES["paper"])),
    "published small": lambda: AllegroConfig(**SMALL),
    "published paper": lambda: AllegroConfig(avg_num_neighbors=48.0),
}
WAYS = ("operators", "plain", "split", "TF32")
"""PyTorch's operators alone; Triton kernels with PyTorch's float32 products, with split ones and what takes these
(networks in few launches, hidden layers), with TF32 ones."""
ROWS = [
    products.Tiles(128, 128, 64, 8, 3),
    products.Tiles(128, 128, 32, 8, 3),
    products.Tiles(64, 128, 32, 4, 3),
]
SHAPES = [(256, 2), (256, 4), (512, 2), (512, 4), (1024, 4), (1024, 8)]
"""Candidates of :data:`equicat.kernels.gpu.environment.SHAPES`."""
HIDDEN = [(128, 32, 8), (64, 32, 4), (128, 64, 8), (64, 64, 4), (64, 32, 8)]
"""Candidates of rows, columns and warps in :mod:`equicat.kernels.gpu.hidden`."""
SUMS = [products.Tiles(64, *t) for t in ((128, 64, 8, 1), (64, 64, 4, 1), (64, 32, 4, 1), (64, 64, 4, 2))]
"""Candidates of :data:`equicat.kernels.gpu.sums.TILES`."""
N_EDGES = 118_398
REPEATS = 10


@contextmanager
def way(name: str) -> Iterator[None]:
    """Compute in one of the ways."""
    os.environ["EQUICAT_NATIVE"] = "0" if name == "operators" else "1"
    torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
    try:
        with split_products(name == "split"):
            yield
    finally:
        os.environ["EQUICAT_NATIVE"] = "1"
        torch.set_float32_matmul_precision("highest")


def milliseconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The median over repetitions, after one that compiles."""
    function()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def tried(name: str, how: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Measurements of one way as a row; one that fails costs the others nothing."""
    try:
        found = measure()
    except Exception as error:  # it is told
        row(name, how, f"{type(error).__name__}: {str(error)[-300:]}")
        return {}
    row(name, how, *found.values())
    return found


def row(*cells: Any) -> None:
    """A row of a Markdown table, shown at once."""
    print("| " + " | ".join(f"{c:.4g}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


# ---- models --------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A model with random weights, the same ones every time, and a batch of slabs."""

    model: Potential
    batch: Batch

    @classmethod
    def make(cls, name: str, n_slabs: int, dtype: torch.dtype = torch.float32) -> "Case":
        """A model of a size of ``equicat bench speed``."""
        structures = [Structure.from_ase(atoms) for atoms in (slabs() * -(-n_slabs // 8))[:n_slabs]]
        elements = tuple(sorted({int(z) for s in structures for z in s.numbers}))
        torch.manual_seed(0)
        model = Potential(CONFIGS[name](), elements, ()).to(DEVICE, dtype)
        batch = Batch.from_structures(structures, model.cutoff, dtype=dtype).to(DEVICE)
        return cls(model, batch)

    def inference(self) -> tuple[Tensor, Tensor]:
        """Energies and forces."""
        self.model.eval().requires_grad_(False)
        with torch.no_grad():
            out = self.model(self.batch)
        assert out.forces is not None
        return out.energy, out.forces

    def training(self) -> list[Tensor]:
        """The gradient of a loss by the weights, as a training step computes it."""
        self.model.train().requires_grad_(True)
        out = self.model(self.batch)
        assert out.forces is not None
        weights = [p for p in self.model.parameters() if p.requires_grad]
        return list(torch.autograd.grad(loss(out.energy, out.forces), weights, allow_unused=True))


def results_of(case: Case) -> dict[str, Tensor]:
    """Energies, forces and gradients by weights, in float64."""
    energy, forces = case.inference()
    gradients = torch.cat([g.flatten().double() for g in case.training() if g is not None])
    return {"energies": energy.double(), "forces": forces.double(), "gradients": gradients}


def errors(name: str) -> dict[str, Any]:
    """Relative errors, root mean square over root mean square, against float64 and operators, for eight slabs."""
    with way("operators"):
        exact = results_of(Case.make(name, 8, torch.float64))

    def measured() -> dict[str, float]:
        results = results_of(Case.make(name, 8))
        return {k: ((results[k] - exact[k]).norm() / exact[k].norm()).item() for k in exact}

    found: dict[str, Any] = {}
    for how in WAYS:
        with way(how):
            found[how] = tried(name, how, measured)
    return found


def times(name: str) -> dict[str, Any]:
    """Milliseconds of an inference and of a training step without the optimiser, for 2,432 atoms."""
    case = Case.make(name, 64)

    def measured() -> dict[str, float]:
        torch.cuda.reset_peak_memory_stats()
        ms = {"inference": milliseconds(case.inference), "training": milliseconds(case.training, 5)}
        return ms | {"GB": torch.cuda.max_memory_allocated() / 1e9}

    found: dict[str, Any] = {}
    for how in WAYS:
        with way(how):
            found[how] = tried(name, how, measured)
    return found


def kernels_of(name: str, what: str, how: str) -> dict[str, Any]:
    """The kernels that take most of a GPU's time."""
    case = Case.make(name, 64)
    with way(how):
        for _ in range(3):  # an inference is recorded at the second call
            getattr(case, what)()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            getattr(case, what)()
            torch.cuda.synchronize()
    events = [e for e in profiled.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    events.sort(key=lambda e: -e.self_device_time_total)
    total, count = sum(e.self_device_time_total for e in events), sum(e.count for e in events)
    print(f"\n{name}, {what}, {how}: {total / 1000:.3f} ms in {count} launches\n")
    for e in events[:15]:
        row(f"{e.self_device_time_total / 1000:.3f} ms", e.count, e.key[:110])
    listed = [(e.self_device_time_total / 1000, e.count, e.key) for e in events[:40]]
    return {"ms": total / 1000, "launches": count, "kernels": listed}


# ---- products ------------------------------------------------------------------------------------------------------


def tf32(x: Tensor) -> Tensor:
    """The nearest numbers with ten bits behind the point."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def three_products(x: Tensor, w: Tensor) -> Tensor:
    """Split products by PyTorch, one product over three times as many terms."""
    (x_high, w_high) = map(tf32, (x, w))
    long = torch.cat([x - x_high, x_high, x_high], 1), torch.cat([w_high, tf32(w - w_high), w_high])
    torch.set_float32_matmul_precision("high")
    try:
        return long[0] @ long[1]
    finally:
        torch.set_float32_matmul_precision("highest")


def in_tf32(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function with PyTorch's products in TF32."""

    def called() -> Tensor:
        torch.set_float32_matmul_precision("high")
        try:
            return function()
        finally:
            torch.set_float32_matmul_precision("highest")

    return called


def with_tiles(name: str, tiles: products.Tiles, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function with other tiles."""

    def called() -> Tensor:
        before = getattr(products, name)
        setattr(products, name, tiles)
        try:
            return function()
        finally:
            setattr(products, name, before)

    return called


def product_candidates() -> dict[str, Any]:
    """TFLOP/s and errors of products of edges with matrices, and of sums over edges."""
    found: dict[str, Any] = {}
    for n_k, n_n in ((512, 2240), (512, 512), (2240, 512), (64, 384)):
        x, w, g = (torch.randn(*size, device=DEVICE) for size in ((N_EDGES, n_k), (n_k, n_n), (N_EDGES, n_n)))
        forms: dict[str, dict[str, Callable[[], Tensor]]] = {
            "rows": {"float32": lambda x=x, w=w: x @ w, "three in one": lambda x=x, w=w: three_products(x, w)},
            "columns": {"float32": lambda x=x, g=g: x.t() @ g},
        }
        forms["rows"]["TF32"], forms["columns"]["TF32"] = (in_tf32(forms[f]["float32"]) for f in ("rows", "columns"))
        for tiles in ROWS:
            forms["rows"][str(tiles)] = with_tiles(
                "ROWS", tiles, lambda x=x, w=w: products.rows([x], products.halves(w))
            )
        forms["rows"]["halves made before"] = lambda x=x, w=w: products.rows(
            products.Halves.by_row(x), products.halves(w)
        )
        forms["columns"]["halves"] = lambda x=x, g=g: products.sums_over_rows(x, [g])
        exact = {"rows": x[:4096].double() @ w.double(), "columns": x.double().t() @ g.double()}
        for form, candidates in forms.items():
            for how, function in candidates.items():
                try:
                    ms, value = milliseconds(function, 5), function()[:4096].double()
                except Exception as error:  # one that does not run must not cost the others their turn
                    row(form, n_k, n_n, how, f"{type(error).__name__}: {str(error)[:200]}")
                    continue
                error = ((value - exact[form]).norm() / exact[form].norm()).item()
                tflops = 2e-9 * N_EDGES * n_k * n_n / ms
                row(form, n_k, n_n, how, ms, tflops, error)
                found[f"{form} {n_k} {n_n} {how}"] = {"ms": ms, "TFLOP/s": tflops, "error": error}
    return found


# ---- edge kernels --------------------------------------------------------------------------------------------------


def edge_candidates() -> dict[str, Any]:
    """Milliseconds of the kernels of environment and read-out for tiles and warps."""
    first = torch.linspace(0, N_EDGES, 2433, device=DEVICE).long()
    w = torch.randn(N_EDGES, 384, device=DEVICE)[:, 96:192]
    y, g = torch.randn(N_EDGES, 9, device=DEVICE), torch.randn(2432, 9, 32, device=DEVICE)
    a = torch.randn(N_EDGES, 32, device=DEVICE)
    by_w, by_y, by_g, by_a = (torch.empty(x.shape, device=DEVICE) for x in (w, y, g, a))
    moves = {"move_w": w.contiguous(), "move_y": y, "move_g": g}
    everything = {"by_a": by_a, "by_w": by_w, "by_y": by_y, "by_g": by_g}
    calls = {
        "_environment": [{"by_g": by_g}],
        "_read_out": [{"g": g, "by_a": by_a}],
        "_gradient": [{"g": g, "by_w": by_w, "by_y": by_y}, {"a": a, "g": g, "by_w": by_w, "by_y": by_y, "by_g": by_g}],
        "_change": [{"a": a, "g": g} | moves | everything],
    }
    found = {}
    before = dict(environment.SHAPES)
    for kernel, ways in calls.items():
        for arguments in ways:
            for shape in SHAPES:
                environment.SHAPES[kernel] = shape
                ms = milliseconds(lambda a=arguments: environment.edges(first, w=w, y=y, **a))
                row(kernel, "a" if "a" in arguments else "", shape, ms)
                found[f"{kernel} {'a ' if 'a' in arguments else ''}{shape}"] = ms
    environment.SHAPES.update(before)
    return found


def narrow_candidates() -> dict[str, float]:
    """Milliseconds of the kernels of narrow hidden layers, and of sums over edges, for tiles and warps."""
    found = {}

    def measure(name: str, function: Callable[[], Any]) -> None:
        found.update(tried(name, "", lambda: {name: milliseconds(function, 7)}))

    before = hidden.EDGES, hidden.COLUMNS, hidden.WARPS, sums.TILES
    for n_x, widths in ((64, [96, 96, 64, 64, 64]), (32, [96, 64, 64])):
        x, z = torch.randn(N_EDGES, n_x, device=DEVICE), torch.randn(N_EDGES, 64, device=DEVICE)
        grads = [torch.randn(N_EDGES, n, device=DEVICE) for n in widths]
        first, last = (torch.randn(*size, device=DEVICE) for size in ((n_x, 64), (64, sum(widths))))
        layer = hidden.Hidden(first, last, widths)
        for tiles in HIDDEN:
            hidden.EDGES, hidden.COLUMNS, hidden.WARPS = tiles
            measure(f"hidden layer {n_x} {tiles}", partial(layer, x, z, [None] * len(widths)))
            measure(f"its gradient {n_x} {tiles}", partial(layer.back, x, z, grads))
            measure(f"how that changes {n_x} {tiles}", partial(layer.moving, x, z, z, grads))
        for shape in SUMS:
            sums.TILES = shape
            measure(f"sums {n_x} {shape}", partial(sums.sums, x, grads, x, grads, True))
    hidden.EDGES, hidden.COLUMNS, hidden.WARPS, sums.TILES = before
    return found


PARTS: dict[str, Callable[[], Any]] = {
    "products": product_candidates,
    "edges": edge_candidates,
    "narrow": narrow_candidates,
    "times": lambda: {name: times(name) for name in CONFIGS},
    "errors": lambda: {name: errors(name) for name in CONFIGS},
    "profiles": lambda: [
        kernels_of(*which)
        for which in (
            ("small", "inference", "split"),
            ("small", "training", "split"),
            ("paper", "inference", "split"),
            ("paper", "training", "split"),
            ("published small", "training", "plain"),
        )
    ],
}
HEADS = {
    "products": ("form", "k", "n", "how", "ms", "TFLOP/s", "error"),
    "edges": ("kernel", "with", "tile, warps", "ms"),
    "narrow": ("kernel, tiles", "", "ms"),
    "times": ("model", "how", "inference [ms]", "training [ms]", "memory [GB]"),
    "errors": ("model", "how", "energies", "forces", "gradients"),
    "profiles": ("ms", "launches", "kernel"),
}


def rounded(row: Mapping[str, float]) -> list[str]:
    """Numbers for a table."""
    return [f"{x:.3g}" for x in row.values()]


def tables(found: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of products, times and errors, as far as they were measured."""
    out = {}
    if isinstance(products_found := found.get("products"), Mapping):
        rows = [[how, *rounded(row)] for how, row in products_found.items()]
        out["Products of 118,398 rows: form, terms, columns, how"] = table(
            ("", "ms", "TFLOP/s", "relative error"), rows
        )
    for part, heading in (("times", "2,432 atoms, 118,398 edges"), ("errors", "Relative errors, 304 atoms")):
        if isinstance(models := found.get(part), Mapping):
            rows = [[m, how, *rounded(row)] for m, ways in models.items() for how, row in ways.items() if row]
            out[heading] = table(HEADS[part], rows)
    return out


def main() -> None:
    """All parts, or some; one that fails costs the others nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.only:
        start = time.perf_counter()
        print(f"\n## {name}\n")
        row(*HEADS[name])
        row(*("---" for _ in HEADS[name]))
        try:
            found[name] = PARTS[name]()
        except Exception:  # it is told, and the others go on
            found[name] = traceback.format_exc()
            print(found[name])
        print(f"({time.perf_counter() - start:.1f} s)", flush=True)
        if options.json:  # after each, for a lent machine may be taken back
            write(options.json, "Split products, and kernels beside those that they replace", tables(found))


if __name__ == "__main__":
    main()
