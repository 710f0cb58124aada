"""Hooks of the site: pages that come from outside docs/, and links from pages to files of the repository.

No address of a repository is needed: a file that a page links to becomes a page of the site.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import pkgutil
import posixpath
import re
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# The page of the site that a file of the repository becomes, where it is not the file's own path.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "report.md"}
LINK = re.compile(r"(\]\()((?:\.\./)+[\w./-]+|[\w./-]+)((?:#[\w-]+)?\))")
LOG = logging.getLogger("mkdocs.hooks.site")
LANGUAGES = {".py": "python", ".rs": "rust", ".toml": "toml", ".json": "json", ".h": "c", ".c": "c", "": "sh"}


@event_priority(100)  # before mkdocs-jupyter, which takes the notebooks from here
def on_files(files: Files, config: MkDocsConfig) -> Files:
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        name = notebook.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for name, page in PAGES.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, page, content=(ROOT / name).read_text()))
    files.append(File.generated(config, "messages.md", content=_messages().page()))
    for path in sorted(_linked(files)):
        # Not in the navigation: such a page is reached by the links to it.
        page = File.generated(config, f"repository/{path}.md", content=_page(path))
        page.inclusion = page.inclusion.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    source = page.file.src_uri
    origin = {site: path for path, site in PAGES.items()}.get(source, f"docs/{source}")

    def site(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[2]))
        target = _target(path)
        if target is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(target, posixpath.dirname(source) or '.')}{match[3]}"

    markdown = LINK.sub(site, markdown)
    return "\n".join([markdown, *_commands()]) if source == "reference/commands.md" else markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Check every link, image and anchor of the site as it was written; with --strict a dead one ends the build."""
    folder = Path(config.site_dir)
    pages = {path: _References(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}
    for path, page in pages.items():
        for reference in sorted(page.references):
            url = urllib.parse.urlsplit(reference)
            if url.scheme or url.netloc:
                continue
            target = path if not url.path else (path.parent / urllib.parse.unquote(url.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            anchor = urllib.parse.unquote(url.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                LOG.warning("%s has a dead link: %s", path.relative_to(folder), reference)


def _messages() -> ModuleType:
    """Return messages.py of this folder, which is no package."""
    path = Path(__file__).with_name("messages.py")
    specification = importlib.util.spec_from_file_location("messages", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class _References(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value and name in ("href", "src"):
                self.references.add(value)
            elif value and name in ("id", "name"):
                self.anchors.add(value)


def _target(path: str) -> str | None:
    """Return the page of the site for a path in the repository; None if the link is right as it is."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/") if (ROOT / path).is_file() else None
    if path in PAGES:
        return PAGES[path]
    if path.startswith("notebooks"):
        return path if path.endswith(".ipynb") else "notebooks/1-a-link-fails.ipynb"
    return f"repository/{path}.md" if (ROOT / path).is_file() else None


def _linked(files: Files) -> Iterator[str]:
    """Yield the files of the repository, outside docs/, that pages link to and that have no page of their own."""
    origins = {ROOT / "docs" / file.src_uri for file in files if file.src_uri.endswith(".md")}
    found = set()
    for page in {*origins, *(ROOT / name for name in PAGES)}:
        if not page.exists():
            continue
        for match in LINK.finditer(page.read_text()):
            path = posixpath.normpath(posixpath.join(page.parent.relative_to(ROOT).as_posix(), match[2]))
            if str(_target(path)).startswith("repository/"):
                found.add(path)
    yield from found


def _page(path: str) -> str:
    text = (ROOT / path).read_text()
    fence = "````"
    return f"# {path}\n\n{fence}{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n{fence}\n"


def _commands() -> Iterator[str]:
    """Yield the help of every command, from its parser."""
    import mptcp.cli

    for module in pkgutil.iter_modules(mptcp.cli.__path__):
        if module.name.startswith("_"):
            continue
        command = importlib.import_module(f"mptcp.cli.{module.name}")
        parser = argparse.ArgumentParser(
            prog=f"mptcp {module.name}",
            description=f"{command.SUMMARY[0].upper()}{command.SUMMARY[1:]}.",
            formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
        )
        command.add_arguments(parser)
        yield f"## mptcp {module.name}"
        yield ""
        yield "```text"
        yield parser.format_help().rstrip()
        yield "```"
        yield ""
