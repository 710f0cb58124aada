"""Every link between the pages leads somewhere, and so does every path in the repository that they name."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DECISIONS = ROOT / "docs" / "decisions"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        same = sum(1 for other in found if re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other))
        found.add(f"{anchor}-{same}" if same else anchor)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target = urllib.parse.urlsplit(link)
        if target.scheme:
            continue
        path = page.parent / target.path if target.path else page
        assert path.exists(), link
        if target.fragment:
            assert target.fragment in anchors(path), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_are_there(page: Path) -> None:
    for path in re.findall(r"(?<![\w./-])(?:docs|fuzz|notebooks|python|src|tests|\.ci)/[\w./*-]*\w", page.read_text()):
        top = path.split("/")[0]
        if (ROOT / top).exists() and not path.startswith("fuzz/target/"):
            # The page of kernels names the files of tests/ from there.
            assert any(ROOT.glob(path)) or any(ROOT.glob(f"tests/{path}")), path


def test_the_index_of_decisions_is_complete() -> None:
    index = re.findall(r"^- \[(.+)\]\((.+)\)$", (DECISIONS / "README.md").read_text(), re.MULTILINE)
    titles = {
        page.name: page.read_text().splitlines()[0] for page in DECISIONS.glob("*.md") if page.name != "README.md"
    }
    assert {name: f"# {title}" for title, name in index} == titles
    assert len(index) == len(titles)


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("[!R]*.md")), ids=lambda page: page.stem)
def test_a_decision_is_dated(page: Path) -> None:
    assert re.match(r"# .+\n\n\d{4}-\d\d-\d\d\n\n\S", page.read_text())


def test_every_room_is_on_the_map() -> None:
    """In CONTRIBUTING.md with a line of its own, and among the layers of docs/concepts.md."""
    rooms = {path.name for path in ROOT.glob("src/*/")}
    lines = re.findall(r"^  (\w+)/ ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    layers = re.findall(r"src/(\w+)", (ROOT / "docs" / "concepts.md").read_text())
    assert rooms <= set(lines), "CONTRIBUTING.md"
    assert rooms <= set(layers), "docs/concepts.md"
