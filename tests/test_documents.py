"""README and the pages of docs/: what they name is there, what they show runs, and every command has its place."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from conftest import command_names
from pages import PAGES, blocks, commands, lines, working_directory
from places import ROOT

import equicat
from equicat.cli import main as cli
from equicat.training.config import TrainConfig, from_mapping

PACKAGE = ROOT / "equicat"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
MAKE_TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def _folder(tmp_path_factory) -> Path:
    return working_directory(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def folder(_folder, monkeypatch) -> Path:
    """The working directory of a reader, with runs and structures of the names that pages use, on Python's path."""
    monkeypatch.chdir(_folder)
    monkeypatch.syspath_prepend(_folder)
    return _folder


# ---- links and names -----------------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), f"{link}#{anchor}"
        assert target.is_file() or ROOT / "docs" not in page.parents, f"{link}: the site has no folders; name a file"


@each_page
def test_pages_name_files_that_exist(page):
    """Paths of the repository in the text, which leave the package's name out or not."""
    text = page.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:equicat|tests|docs|benchmarks|configs)/[\w./-]+|[a-z_]+/[\w/]+\.(?:py|cpp|h))`", text)
    assert [path for path in paths if not ((ROOT / path).exists() or (PACKAGE / path).exists())] == []


def test_the_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/]+\.md", str(site["nav"]))
    here = ROOT / "docs"
    pages = {path.relative_to(here).as_posix() for path in [*here.glob("*.md"), *(here / "reference").glob("*.md")]}
    assert sorted(listed) == sorted(pages | {"index.md", "decisions/index.md"})
    decisions = (here / "decisions" / "index.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in decisions for path in (here / "decisions").glob("0*.md"))


def test_the_site_is_built_without_a_warning(tmp_path):
    """MkDocs as `make docs` runs it: links, anchors, the navigation, and names of the reference are checked."""
    pytest.importorskip("mkdocs", reason="needs MkDocs and its theme: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr + done.stdout) == (0, "")
    site = tmp_path / "site"
    texts = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert "equicat adsorb" in texts["index.html"]
    assert 'id="equicat.models.saved.load"' in texts["reference/public.html"]
    pages = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(texts)
    loaded = [re.findall(r'(?:src|<link[^>]* href)="https?://[^"]*', text) for text in texts.values()]
    assert not any(loaded), "the site needs no network"


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs" / "reference" / "public.md").read_text(encoding="utf-8")
    documented = [name.rpartition(".")[2] for name in re.findall(r"^::: (equicat\.[\w.]+)$", page, flags=re.MULTILINE)]
    assert sorted(documented) == sorted(set(equicat.__all__) - {"__version__"})


def test_architecture_names_every_folder():
    (block,) = (b.text for b in blocks(ROOT / "docs" / "architecture.md", "text") if b.text.startswith("equicat/"))
    listed = [line.split()[0] for line in block.splitlines()[1:]]
    folders = {f"{path.name}/" for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert sorted(listed) == sorted(folders | {path.name for path in PACKAGE.glob("*.py")})


# ---- blocks of code ------------------------------------------------------------------------------------------------

CODE = ("python", "bash", "yaml")
COMMANDS = [
    command for page in PAGES for block in blocks(page, "bash") for line in lines(block) for command in commands(line)
]
each_block = pytest.mark.parametrize(
    "block", [b for page in PAGES for b in blocks(page, "bash")], ids=lambda b: f"{b.page.stem}-{b.text.split()[1:3]}"
)


def write_files(page, folder):
    """Write the blocks of a page that are files."""
    for block in blocks(page, *CODE):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


@each_page
def test_every_block_is_checked_or_says_why_not(page):
    found = re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(found) <= {*CODE, "text", ""}, "a language that nothing here checks"
    n_code = sum(language in CODE for language in found)
    assert len(blocks(page, *CODE)) == n_code, "a comment or a block in a form that is not understood"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore::equicat.errors.Remark")
def test_python_of_the_pages_runs(page, folder):
    """The blocks of a page are run one after the other, in one namespace, beside a tiny model and small structures."""
    torch.manual_seed(0)
    namespace = {"equicat": equicat, "__name__": "__main__"}
    write_files(page, folder)
    for block in blocks(page, "python"):
        if not (block.file or block.not_run):
            exec(compile(block.text, f"{page.name}: {block.text[:40]!r}", "exec"), namespace)


@each_block
def test_lines_for_the_shell_would_run(block, folder, monkeypatch):
    """Commands of equicat: options, choices and configuration files are checked; of others what is ours in them."""
    runs = []
    monkeypatch.setattr(cli, "chosen", lambda parser, options: (lambda: runs.append(options), {}))
    write_files(block.page, folder)
    for line in lines(block):
        found = list(commands(line))
        for words in found:
            assert cli.main(words) == 0, line
            assert len(runs) == ("--help" not in words), line
            runs.clear()
        if not found and not block.not_run:
            assert other_line(line), f"{line}: say before the block why it is not run: <!-- not run: … -->"


def other_line(line: str) -> bool:
    """Whether a line that runs no command of equicat is right: targets of make, extras and scripts exist."""
    words = [word for word in shlex.split(line, comments=True) if word not in ("&&", ".")]
    extras = [extra for found in re.findall(r"\[([\w,]+)\]", line) for extra in found.split(",")]
    match words:
        case ["make", target, *_]:
            return target in MAKE_TARGETS
        case ["pip", "install", *_]:
            return set(extras) <= set(EXTRAS)
        case ["python", script, *_]:
            return (ROOT / script).is_file()
        case ["python3", "-m", "venv", *_] | ["export", *_]:
            return True
    return all("=" in word for word in words[:1])


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page, "yaml")], ids=lambda b: b.page.stem)
def test_yaml_of_the_pages_is_what_it_says(block, folder):
    """A configuration is one that training would take, with the files of its page; all else is YAML."""
    write_files(block.page, folder)
    values = yaml.safe_load(block.text)
    if set(values) & {field.name for field in fields(TrainConfig)}:
        from_mapping(values)


def test_every_command_is_on_a_page():
    wanted = [command.split() for command in command_names(cli.COMMANDS)]
    assert [words for words in wanted if not any(given[: len(words)] == words for given in COMMANDS)] == []
