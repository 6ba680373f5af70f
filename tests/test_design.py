"""The design as numbers: sizes, layers, and documents that say what is there."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml
from places import ROOT

import equicat

PACKAGE = ROOT / "equicat"

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60
"""Docstring not counted."""
MAX_ARGUMENTS = 8
"""self and cls not counted; more belong in a dataclass."""

ROWS = """
    errors
    files extras options terminal
    data kernels
    sources networks run_directory
    models
    tasks testing relaxation
    interfaces
    training apply report bench vibrations
    studies adsorption barriers
    serve
    cli
    __main__
"""
"""Folders and modules of the package by floor: each imports from itself and from the floors above its line."""
FLOOR = {room: floor for floor, row in enumerate(ROWS.split("\n")) for room in row.split()}
MAX_FLAT_MODULES = 6
"""Python modules directly in the package."""

OTHER_ENVIRONMENTS = (
    "bench/peers/",
    "interfaces/nequip_allegro_extract.py",
    "interfaces/nequip_allegro_build.py",
    "interfaces/library/equicat_model.py",
    "interfaces/metatomic_model.py",
)
"""Programs that run beside other packages, in environments that need not have jaxtyping."""

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
def test_what_is_public_has_a_docstring(name):
    assert list(without_docstring(tree(MODULES[name]))) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from equicat.cli.main import main; main(['--help'])",
        "import equicat.sources.oc20.make, equicat.sources.dft.make, equicat.sources.emt.make",
    ],
)
def test_import_does_not_wait_for_torch(statement):
    check = f"import sys; {statement}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0


def test_using_a_model_does_not_wait_for_what_it_does_not_need():
    """Each of these packages takes a second or more, and up to 160 MB."""
    slow = ("torch._dynamo", "e3nn", "lightning", "matplotlib")
    check = (
        f"import sys, equicat; equicat.Calculator, equicat.load; sys.exit(str([n for n in {slow} if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_public_names_exist():
    assert all(getattr(equicat, name) is not None for name in equicat.__all__)


# ---- shapes ---------------------------------------------------------------------------------------------------------

TENSORS = {"Tensor", "ndarray"}


@cache
def aliases() -> dict[str, list[ast.expr]]:
    """Names of types that are made of tensors, such as ``Graph = tuple[Tensor, …]`` at the level of a module."""
    found: dict[str, list[ast.expr]] = {}
    for path in MODULES.values():
        for node in tree(path).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() | ast.BinOp() as value):
                    found.setdefault(name, []).append(value)
    return {name: values for name, values in found.items() if any(TENSORS & words(value) for value in values)}


def words(node: ast.AST) -> set[str]:
    """Names that occur in an expression, those behind a dot included."""
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }


def has_shape(hint: ast.expr | None) -> Iterator[bool]:
    """For each tensor or array in a type hint, whether it says its shape: ``Float[Tensor, "n_atoms 3"]``."""
    match hint:
        case ast.Constant(value=str(text)):
            yield from has_shape(ast.parse(text, mode="eval").body)
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in TENSORS:
            yield False
        case ast.Name(id=name) if name in aliases():
            yield from (shape for value in aliases()[name] for shape in has_shape(value))
        case ast.Subscript(
            slice=ast.Tuple(elts=[ast.Name() | ast.Attribute() as array, ast.Constant(value=str())])
        ) if TENSORS & words(array):
            yield True
        case ast.AST():
            yield from (shape for child in ast.iter_child_nodes(hint) for shape in has_shape(child))


def public_functions(module: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods that others call."""
    scopes = [module, *(node for node in module.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")]
    for node in (node for scope in scopes for node in scope.body):
        if isinstance(node, ast.FunctionDef) and (node.name[0] != "_" or node.name == "__call__"):
            yield node


def hints(function: ast.FunctionDef) -> Iterator[ast.expr | None]:
    a = function.args
    yield from (x.annotation for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x)
    yield function.returns


def test_public_functions_say_the_shape_of_every_tensor():
    with_tensors, bare = 0, []
    for path in MODULES.values():
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith(OTHER_ENVIRONMENTS):
            for function in public_functions(tree(path)):
                shapes = [shape for hint in hints(function) for shape in has_shape(hint)]
                with_tensors += bool(shapes)
                bare += [] if all(shapes) else [f"{file}:{function.lineno} {function.name}"]
    print(f"{1 - len(bare) / with_tensors:.1%} of {with_tensors} public functions with tensors say all shapes")
    assert bare == []


# ---- language -------------------------------------------------------------------------------------------------------

LEANING = "Of|What|The same|Same as|By it|It|Its|They|Their|Those|Also|As above|As there|Ditto|Likewise|Instead|So that"
LEANS = re.compile(rf"\s*({LEANING})\b")
"""A text that begins so leans on the line above, and has to be solved."""
OWN_FILES = ("equicat/**/*", "tests/**/*", "benchmarks/*", "*.toml", "*.yaml", ".github/**/*", "Makefile")


def texts_of_python(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings, texts under attributes, and comments, with their lines."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value
    line_above = 0
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line.lstrip().startswith("#")
            if not (alone and line_above == token.start[0] - 1):  # else it goes on with a sentence
                yield token.start[0], token.string.lstrip("# ")
            line_above = token.start[0] if alone else 0


def texts_of_others(path: Path) -> Iterator[tuple[int, str]]:
    """The first line of each comment of a file in C++, YAML, TOML or shell."""
    within = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        comment = re.match(r"\s*(?:#|//+)\s+(.*)", line)
        if comment and not within:
            yield number, comment[1]
        within = comment is not None


def test_docstrings_and_comments_stand_alone():
    leaning = []
    for path in sorted({path for pattern in OWN_FILES for path in ROOT.glob(pattern)}):
        if path.suffix not in {".py", ".h", ".cpp", ".yaml", ".yml", ".toml", ".sh"} and path.name != "Makefile":
            continue
        texts = texts_of_python(path) if path.suffix == ".py" else texts_of_others(path)
        leaning += [f"{path.relative_to(ROOT)}:{line}: {text[:60]}" for line, text in texts if LEANS.match(text)]
    assert leaning == []


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


def test_pre_commit_checks_what_ci_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == [line.strip() for line in lint.splitlines()]
