"""Hooks of the site for MkDocs: README is its first page, and links out of docs/ stay whole.

Pages link files of the repository as on GitHub (``../benchmarks/LOG.md``). Each such file becomes part of the site
under its path in the repository, and the link is changed to fit. Docstrings lose the roles of Sphinx.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LINK = re.compile(r"(\]\()(?!#|\w+:)([^)#\s]+)")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")
FIRST_PAGE = {"README.md": "index.md"}


def in_repository(file: File) -> str:
    """The path of a page's text in the repository."""
    return Path(str(file.abs_src_path)).relative_to(Path(__file__).parents[1]).as_posix()


def in_site(path: str) -> str:
    """The path in the site of a file of the repository."""
    return FIRST_PAGE.get(path, path.removeprefix("docs/"))


def target_of(link: str, page: str) -> str:
    """The path in the repository that a link on a page means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README, the files of the repository that pages link to, and those that these link to in turn."""
    root = Path(__file__).parents[1]
    waiting = ["README.md", *(in_repository(file) for file in files.documentation_pages())]
    while waiting:
        path = waiting.pop()
        if in_site(path) not in files.src_uris:
            files.append(File.generated(config, in_site(path), abs_src_path=str(root / path)))
        if path.endswith(".md"):
            links = {target_of(link, path) for _, link in LINK.findall((root / path).read_text(encoding="utf-8"))}
            waiting += [link for link in links if in_site(link) not in files.src_uris and (root / link).is_file()]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the site."""
    path, folder = in_repository(page.file), posixpath.dirname(page.file.src_uri) or "."
    return LINK.sub(lambda m: m[1] + posixpath.relpath(in_site(target_of(m[2], path)), folder), markdown)


class Roles(griffe.Extension):
    """Shows ``:class:`~equicat.data.batch.Batch``` as the name alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda match: f"`{match[1]}`", obj.docstring.value)
