"""The design as numbers: sizes, layers, and documents that say what is there."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from conftest import command_names
from places import ROOT

import equicat
from equicat.cli import main as cli

PACKAGE = ROOT / "equicat"

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
"""Docstring not counted."""
MAX_ARGUMENTS = 8
"""self and cls not counted; more belong in a dataclass."""

ROWS = """
    errors
    files extras options
    data kernels
    sources networks run_directory
    models
    tasks interfaces testing relaxation
    training apply report bench vibrations
    studies adsorption
    cli
    __main__
"""
"""Folders and modules of the package by floor: each imports from itself and from the floors above its line."""
FLOOR = {room: floor for floor, row in enumerate(ROWS.split("\n")) for room in row.split()}
MAX_FLAT_MODULES = 6
"""Python modules directly in the package."""

BASE_CLASS_METHODS = {"forward", "backward", "error", "validation_step", "configure_optimizers", "calculate"}
"""Methods whose contract PyTorch, Lightning, argparse or ASE states; so are all those called on_…"""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """``models.allegro``; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
each_module = pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "equicat")


def functions(module: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef))


def n_lines(function: ast.FunctionDef) -> int:
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    not_counted = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return function.end_lineno - function.lineno + 1 - not_counted


def n_arguments(function: ast.FunctionDef) -> int:
    a = function.args
    names = [argument.arg for argument in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if argument]
    return len([name for name in names if name not in ("self", "cls")])


def imported_modules(module: ast.Module) -> set[str]:
    """Modules of the package that this one imports, wherever in the file."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name.removeprefix("equicat.") for name in found if name.startswith("equicat.")}
    return ours & set(MODULES)


# ---- code ----------------------------------------------------------------------------------------------------------


@each_module
def test_sizes(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_MODULE_LINES, f"{lines} lines"
    for function in functions(tree(MODULES[name])):
        assert n_lines(function) <= MAX_FUNCTION_LINES, f"{function.name}: {n_lines(function)} lines"
        assert n_arguments(function) <= MAX_ARGUMENTS, f"{function.name}: {n_arguments(function)} arguments"


@pytest.mark.parametrize("name", [name for name in MODULES if name])  # the package itself imports on first use
def test_imports_only_downward(name):
    room = name.split(".")[0]
    assert room in FLOOR, f"say where {room} stands in ROWS"
    for imported in imported_modules(tree(MODULES[name])) - {""}:
        other = imported.split(".")[0]
        assert other == room or FLOOR[other] < FLOOR[room], f"{name} imports {imported}, which stands no lower"


def test_no_circle_of_imports():
    graph = {name: imported_modules(tree(path)) - {name} for name, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)  # raises CycleError, which names the circle


def test_rows_name_rooms_that_exist():
    assert set(FLOOR) == {name.split(".")[0] for name in MODULES if name}


def test_few_modules_lie_flat():
    flat = [path.name for path in PACKAGE.glob("*.py")]
    assert len(flat) <= MAX_FLAT_MODULES, flat


def test_tests_lie_where_what_they_test_lies():
    rooms = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    assert [room for room in sorted(rooms) if not (PACKAGE / room).is_dir()] == []


@each_module
def test_behaviour_is_not_chosen_by_text_or_attributes(name):
    calls = (node.func for node in ast.walk(tree(MODULES[name])) if isinstance(node, ast.Call))
    used = {function.id for function in calls if isinstance(function, ast.Name)}
    assert not used & {"hasattr", "eval", "exec"}


def without_docstring(module: ast.Module) -> Iterator[str]:
    """Public classes and functions, and public methods of more than one statement that no base class explains."""
    if ast.get_docstring(module) is None:
        yield "module"
    for node in module.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield node.name
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(method, ast.FunctionDef) and len(method.body) > 1:
                    explained = method.name in BASE_CLASS_METHODS or method.name.startswith(("_", "on_"))
                    if not explained and ast.get_docstring(method) is None:
                        yield f"{node.name}.{method.name}"


@each_module
def test_docstrings_stand_alone(name):
    """A docstring that begins so leans on the line above, and has to be solved."""
    texts = (
        node.value.value
        for node in ast.walk(tree(MODULES[name]))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    assert [text for text in texts if re.match(r"\s*(Of|What|The same|By it)\b", text)] == []


@each_module
def test_what_is_public_has_a_docstring(name):
    assert list(without_docstring(tree(MODULES[name]))) == []


@pytest.mark.parametrize("statement", ["import equicat", "from equicat.cli.main import main; main(['--help'])"])
def test_import_does_not_wait_for_torch(statement):
    check = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", ["torch._dynamo", "e3nn", "lightning", "matplotlib"])
def test_using_a_model_does_not_wait_for(name):
    """Each takes a second or more, and up to 160 MB."""
    check = f"import sys, equicat; equicat.Calculator, equicat.load; sys.exit({name!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0


def test_public_names_exist():
    assert all(getattr(equicat, name) is not None for name in equicat.__all__)


# ---- documents -----------------------------------------------------------------------------------------------------


def test_no_file_names_a_folder_of_one_machine():
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        files = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for file in files:
        if not file or file.startswith("tests/") or not (ROOT / file).is_file():
            continue
        try:
            text = (ROOT / file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert re.findall(r"(?<![\w.])/(?:tmp|work|home|root)/", text) == [], file


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def readme_commands(program: str) -> list[str]:
    """Lines of the shell blocks that run ``program``, without comments, continued lines joined."""
    text = "\n".join(readme_blocks("bash")).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.split()[:1] == [program]]


def test_readme_names_every_folder():
    (block,) = (b for b in readme_blocks("text") if b.startswith("equicat/"))
    listed = [line.split()[0] for line in block.splitlines()[1:]]
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert sorted(listed) == sorted(folders | {path.name for path in PACKAGE.glob("*.py")})


def test_readme_makes_targets_that_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = [shlex.split(command, comments=True)[1] for command in readme_commands("make")]
    assert wanted
    assert set(wanted) <= set(targets)


@pytest.mark.parametrize("command", readme_commands("equicat"))
def test_readme_commands_parse(command, monkeypatch):
    """Options, choices and configuration files are checked; nothing is run."""
    runs = []
    monkeypatch.setattr(cli, "chosen", lambda parser, options: (lambda: runs.append(options), {}))
    monkeypatch.chdir(ROOT)
    assert cli.main(shlex.split(command, comments=True)[1:]) == 0
    assert len(runs) == 1


@pytest.mark.parametrize("command", list(command_names(cli.COMMANDS)))
def test_every_command_has_help_and_is_in_the_readme(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: equicat {command}")
    assert any(line.startswith(f"equicat {command}") for line in readme_commands("equicat"))


@pytest.mark.parametrize("block", readme_blocks("python"))
def test_readme_python_uses_public_names(block):
    tree = ast.parse(block)
    names = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "equicat"]
    assert names
    assert set(names) <= set(equicat.__all__)


def test_pre_commit_checks_what_ci_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in lint.splitlines()]
