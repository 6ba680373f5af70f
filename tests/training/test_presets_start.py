"""Every configuration for OC20, and every command that one names, trains a step on a stand-in for OC20."""

import importlib.util
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from places import ROOT

from equicat.cli.train import TrainParser
from equicat.data.info import DatasetInfo
from equicat.data.store import write_store
from equicat.data.structure import Structure
from equicat.options.text import read_yaml
from equicat.training.config import TrainConfig, from_mapping
from equicat.training.presets import FOLDER, find_configuration, presets
from equicat.training.train import train

COMMANDS = [
    command
    for path in sorted((FOLDER / "oc20").rglob("*.yaml"))
    for command in (
        f"equicat train {path.relative_to(FOLDER).with_suffix('').as_posix()}",
        *re.findall(r"^# +(equicat train .*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE),
    )
]
OF_ALLEGRO = [command for command in COMMANDS if re.search(r"/(10k|100k|200k|2M|all)(/allegro)?( |$)", command)]
ELEMENTS = tuple(range(1, 85))
"""As many as the published models of OC20 have types."""


def configured(command: str, *more: str) -> TrainConfig:
    """The configuration that a command trains with."""
    parser = TrainParser()
    values = parser.instantiate(parser.parse_args([*shlex.split(command)[2:], *more])).as_dict()
    return TrainConfig(**{name: value for name, value in values.items() if name != "print_config"})


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A data set directory with the smallest slabs of the stand-in: three to train on, one again to validate."""
    spec = importlib.util.spec_from_file_location("synthetic_oc20", ROOT / "benchmarks" / "synthetic_oc20.py")
    synthetic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(synthetic)
    rng = np.random.default_rng(0)
    slabs = sorted((synthetic.slab(rng) for _ in range(60)), key=len)[:3]
    root, frames, initial = tmp_path_factory.mktemp("stand_in"), [], []
    for k, atoms in enumerate([*slabs, slabs[0]]):
        step = rng.normal(scale=0.1, size=(len(atoms), 3))
        spring = 0.5 * synthetic.SPRING * float((step**2).sum())
        structure = Structure(
            numbers=atoms.numbers,
            positions=atoms.positions + step,
            cell=np.asarray(atoms.cell),
            pbc=atoms.pbc,
            tags=atoms.get_tags(),
            fixed=atoms.get_tags() == 0,
            sid=f"random{k}",
        )
        frames.append(replace(structure, energy=spring - 2.0, forces=-synthetic.SPRING * step, fid=0))
        initial.append(replace(structure, relaxed_energy=-2.0, relaxed_positions=atoms.positions))
    for task, structures in (("s2ef", frames), ("is2re", initial)):
        write_store(root / task / "train", structures[:3], DatasetInfo("adsorption"))
        write_store(root / task / "val_id", structures[3:], DatasetInfo("adsorption"))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_it_trains_a_step(command, stand_in, tmp_path):
    if "/cgcnn" in command or "/schnet" in command or "/dimenet" in command:
        pytest.importorskip("torch_geometric", reason="the baselines need torch_geometric (extra: baselines)")
    options = {"data": stand_in, "run.out": tmp_path / "run", "run.max_epochs": 1, "run.progress": "false"}
    options |= {"run.accelerator": "cpu", "run.devices": 1, "run.batch_size": 3}
    config = configured(command, *(f"--{name}={value}" for name, value in options.items()))
    assert np.isfinite(train(config).best_val_loss)


# ---- Allegro's -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", OF_ALLEGRO)
def test_allegro_is_that_of_the_appendix(command):
    """Appendix E of the paper on Allegro for catalysis, and the code that it names."""
    config = configured(command)
    assert config.model.name == "allegro"
    model, optimizer = config.model, config.optimizer
    assert (model.cutoff, model.n_bessel, model.bessel_trainable, model.envelope_p) == (6.0, 8, True, 6)
    assert (model.two_body_mlp, model.latent_mlp, config.output_mlp) == ((64, 128, 256, 512), (512,), (128,))
    assert (model.tensor_channels, model.parity, model.n_types) == (32, "full", 84)
    assert model.avg_num_neighbors == (33 if config.task == "s2ef" else 37)
    assert model.normalize_basis
    assert config.output_nonlinearity is None
    assert config.initialization == optimizer.parametrization == "published"
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.gradient_clip) == ("adam", 2e-3, 0.0, None)
    assert (optimizer.schedule, optimizer.plateau_factor, optimizer.ema_decay) == ("plateau", 0.8, 0.99)
    patience = {"data/oc20_2M": 3, "data/oc20_is2re_all": 4}  # the code's; the text has 5 for all
    assert optimizer.plateau_patience == patience.get(config.data.train[0], 5)
    assert config.run.batch_size == {1: 32, 2: 16, 3: 4}[model.l_max], "appendix E"
    if config.task == "s2ef":
        assert (config.loss.forces, config.loss.forces_weight) == ("mae", 1000.0)


def test_the_paper_has_a_command_for_each_of_its_models():
    configs = [configured(command) for command in OF_ALLEGRO]
    found = {(c.task, c.data.train[0], c.model.n_layers, c.model.l_max, c.displacement_head) for c in configs}
    wanted = {("is2re", f"data/oc20_is2re_{size}", 3, l_max) for size in ("10k", "100k", "all") for l_max in (1, 2, 3)}
    wanted |= {("s2ef", f"data/oc20_{size}", n, l_max) for size in ("200k", "2M") for n, l_max in ((3, 2), (1, 1))}
    assert wanted <= {row[:4] for row in found}
    heads = {row[4] for row in found if row[0] == "is2rs"}
    assert heads == {"gradient", "magnitude-direction"}


@pytest.mark.parametrize(("l_max", "published"), [(1, 1_277_064), (2, 1_413_256), (3, 1_567_880)])
def test_allegro_has_the_authors_number_of_parameters(l_max, published):
    """Counted in the authors' code with 84 types, whose last layer has a matrix more, of which nothing reads."""
    from equicat.models.heads import OutputMLP
    from equicat.models.potential import Potential

    config = from_mapping(read_yaml(find_configuration("oc20/is2re/10k/allegro")))
    potential = Potential(replace(config.model, l_max=l_max), ELEMENTS, OutputMLP(config.output_mlp, linear=True))
    assert sum(p.numel() for p in potential.parameters()) + 1024 * (l_max + 1) == published


def test_what_is_written_of_configurations_of_others():
    """DimeNet's steps are OCP's epochs, GemNet-T is GemNet-dT without its direct forces."""
    sizes = {"10k": 10_000, "100k": 100_000, "all": 460_328}
    for size, n in sizes.items():
        config = configured(f"equicat train oc20/is2re/{size}/dimenet")
        steps = -(-n // config.run.batch_size)
        assert config.optimizer.milestones == (4 * steps, 8 * steps, 12 * steps)
        assert config.optimizer.warmup_steps == 3 * steps
    for size in ("200k", "2M"):
        ours, theirs = (configured(f"equicat train oc20/s2ef/{size}/gemnet_{kind}") for kind in ("t", "dt"))
        assert (ours.force_head, theirs.force_head) == ("gradient", "sum")
        assert (ours.model, ours.optimizer, ours.loss) == (theirs.model, theirs.optimizer, theirs.loss)
    assert {"oc20/is2re/10k", "oc20/s2ef/2M", "oc20/is2rs/100k"} <= set(presets()), "a folder's name is its Allegro"


def test_the_page_about_the_paper_names_commands_that_parse():
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(equicat train .*?)(?: {2,}#.*)?$", text, flags=re.MULTILINE)
    assert len(commands) == 7
    assert {configured(command).model.name for command in commands} == {"allegro"}
