"""nequip-allegro as a contestant of `equicat bench`; runs in an environment with that package, by its path."""

import importlib.util
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
import worker
from allegro.model import AllegroModel
from ase import Atoms
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.utils.global_state import set_global_state


class NequipAllegro:
    """A model and the systems of a request.

    ``mode`` is eager, compile (``torch.compile``, as in the package's training) or aotinductor (as in its inference);
    ``modifier`` names one of the package's tensor-product kernels, or is None.
    """

    def __init__(self, request: dict[str, Any]):
        set_global_state(allow_tf32=False)
        self.mode, self.device, start = request["mode"], request["device"], time.perf_counter()
        self.model = AllegroModel(
            **request["hyperparameters"],
            seed=0,
            model_dtype="float32",
            compile_mode="compile" if self.mode == "compile" else "eager",
        )
        if request["modifier"] is not None:
            from nequip.model.modify_utils import modify

            self.model = modify(self.model, [{"modifier": request["modifier"]}])
        self.model = self.model.to(self.device)
        self.setup_s = {"model": worker.seconds_since(start)}
        self.mapper = ChemicalSpeciesToAtomTypeMapper(request["hyperparameters"]["type_names"])
        self.frames = [self.mapper(from_ase(Atoms(**s))) for s in worker.systems(request["systems"])]
        self.cutoff, start = request["hyperparameters"]["r_max"], time.perf_counter()
        self.neighbors()
        self.n_edges = AtomicDataDict.num_edges(self.data)
        self.setup_s["neighbors"] = worker.seconds_since(start)
        self.compiled: Any = None

    def neighbors(self) -> None:
        """Neighbour lists and the batch, from structures that have neither."""
        frames = [compute_neighborlist_(frame.copy(), r_max=self.cutoff) for frame in self.frames]
        self.data = AtomicDataDict.to_(AtomicDataDict.batched_from_list(frames), self.device)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """Made when first used: an inference does without what it brings along."""
        return torch.optim.Adam(self.model.parameters(), lr=1e-9, fused=True)

    def inference(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies and forces."""
        self.model.eval().requires_grad_(False)
        if self.mode == "aotinductor":
            self.compiled = self.compiled or self._exported()
            return self._read(self.compiled(self.data.copy()))
        return self._read(self.model(self.data.copy()))

    def training(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One step."""
        if self.mode == "aotinductor":
            raise RuntimeError("an exported model cannot be trained")
        self.model.train().requires_grad_(True)
        self.optimizer.zero_grad()
        energy, forces = self._read(self.model(self.data.copy()))
        worker.loss(energy, forces).backward()
        self.optimizer.step()
        return energy.detach(), forces.detach()

    def _read(self, out: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return out[AtomicDataDict.TOTAL_ENERGY_KEY].flatten(), out[AtomicDataDict.FORCE_KEY]

    def _exported(self) -> Any:
        """The model as `nequip-compile --mode aotinductor --target batch` compiles it, loaded."""
        from nequip.model.inference_models import load_compiled_model
        from nequip.scripts._compile_utils import COMPILE_TARGET_DICT
        from nequip.utils.aot import aot_export_model

        target = COMPILE_TARGET_DICT["batch"]
        kinds = {"graph": "num_frames", "node": "num_nodes", "edge": "num_edges"}
        path = str(Path(tempfile.mkdtemp()) / "model.nequip.pt2")
        metadata = {key: str(value) for key, value in {**self.model.metadata, "allow_tf32": 0}.items()}
        aot_export_model(
            self.model,
            self.device,
            target["input"],
            target["output"],
            self.data,
            {kind: torch.export.Dim(name, min=2) for kind, name in kinds.items()},
            path,
            inductor_configs={"aot_inductor.metadata": metadata},
        )
        return load_compiled_model(path, self.device, target["input"], target["output"])[0]


def _export(contestant: NequipAllegro, request: dict[str, Any]) -> None:
    """Write the weights for equicat, by its program that reads models of the package and needs that package alone."""
    program = Path(__file__).parents[2] / "interfaces" / "nequip_allegro_extract.py"
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec is not None
    assert spec.loader is not None
    extract = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extract)
    extract.write(Path(request["path"]), *extract.extract(contestant.model))


if __name__ == "__main__":
    worker.serve(NequipAllegro, {"export": _export})
