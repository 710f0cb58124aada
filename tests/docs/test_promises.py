"""docs/promises.md: what the README and the start page promise, and the tests and commands that show it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = (ROOT / "docs" / "promises.md").read_text()
PAGES = {"README": ROOT / "README.md", "Start in five minutes": ROOT / "docs" / "index.md"}
# A sentence with one of these can be wrong.
STRONG = re.compile(
    r"\b(\d+|without|every|everybody|any|all|never|always|only|no|not|neither|less than|stock|needs?|works)\b"
)
# What is a reference to another page, or tells about the text, not about the package.
NO_PROMISE = (
    "The kernel interface and the privilege",  # followed by "behind every public name", which has a row
    "or [a broker]",
)


def rows(section: str) -> list[tuple[str, str]]:
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PROMISES, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^\| (.*?) \| (.*) \|$", text, re.MULTILINE)
    assert found, section
    return [row for row in found[1:] if set(row[0]) != {"-"}]


def plain(text: str) -> str:
    """Without line breaks and the addresses of links."""
    return " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).split())


def sentences(page: Path) -> list[str]:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|^[#|].*$", "", text, flags=re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n|\n(?=- )", text)
    return [part for text in paragraphs for part in re.split(r"(?<=\.)\s+", plain(text)) if part]


@pytest.mark.parametrize("section", PAGES)
def test_every_statement_is_on_its_page(section: str) -> None:
    page = plain(PAGES[section].read_text())
    assert [statement for statement, _ in rows(section) if statement not in page] == []


@pytest.mark.parametrize("section", PAGES)
def test_every_strong_sentence_has_a_row(section: str) -> None:
    statements = [statement for statement, _ in rows(section)]
    missing = [
        sentence
        for sentence in sentences(PAGES[section])
        if STRONG.search(sentence) and not any(part in sentence for part in (*statements, *NO_PROMISE))
    ]
    assert missing == []


def test_every_row_of_what_it_does_has_its_tests() -> None:
    table = re.findall(r"^\| to \| use \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGES["README"].read_text(), re.MULTILINE)
    readme = re.findall(r"^\| (.*?) \|", table[0], re.MULTILINE)
    ours = [statement for statement, _ in rows("What it does")]
    assert len(readme) == len(ours)
    assert [(there, here) for there, here in zip(readme, ours, strict=True) if not there.startswith(here)] == []


def test_every_test_and_command_exists() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)`: ((?:`test_\w+`(?:, | to )?)+)", PROMISES)
    assert len(named) > 40
    for file, tests in named:
        text = (ROOT / "tests" / file).read_text()
        for name in re.findall(r"`(\w+)`", tests):
            assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"{file}: {name}"
    for command in re.findall(r"`(\.ci/\w+)`", PROMISES):
        assert (ROOT / command).exists() or not (ROOT / "src").exists(), command
    for section in (*PAGES, "What it does"):
        assert all(shown for _, shown in rows(section))


def test_the_requirements_are_those_of_the_package() -> None:
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    for page in PAGES.values():
        assert f"CPython {python} or later" in plain(page.read_text())
    if not (ROOT / "Cargo.toml").exists():
        pytest.skip("needs a checkout: Cargo.toml")
    rust = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["rust-version"]
    for page in PAGES.values():
        assert f"Rust {rust} or later" in plain(page.read_text())


def test_the_notebooks_are_as_many_as_the_readme_says() -> None:
    words = {6: "Six", 7: "Seven", 8: "Eight", 9: "Nine", 10: "Ten"}
    notebooks = list((ROOT / "notebooks").glob("*.ipynb"))
    if not notebooks:
        pytest.skip("needs the notebooks beside the tests")
    assert f"{words[len(notebooks)]} [notebooks](notebooks)" in PAGES["README"].read_text()
