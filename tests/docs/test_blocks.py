"""Every block of the README and of the pages is run by a test, or is listed here with the reason why it is not.

A block that is added to a page fails until it has either.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"

# By page and language: the test that runs all its blocks. It names the page, and fails if it misses one.
RUN = {
    ("README.md", "python"): "docs/test_docs.py",
    ("README.md", "text"): "docs/test_docs.py",
    ("docs/broker.md", "toml"): "docs/test_commands.py",
    ("docs/broker.md", "c"): "docs/test_commands.py",
    ("docs/ci.md", "python"): "docs/test_pages.py",
    ("docs/ci.md", "sh"): "docs/test_pages.py",
    ("docs/ci.md", "text"): "docs/test_pages.py",
    ("docs/ci.md", "yaml"): "docs/test_pages.py",
    ("docs/differences.md", "python"): "socket/test_differences.py",
    ("docs/differences.md", "text"): "socket/test_differences.py",
    ("docs/enhanced-api.md", "python"): "enhanced_api/test_enhanced_api.py",
    ("docs/enhanced-api.md", "sh"): "docs/test_commands.py",
    ("docs/gallery.md", "python"): "docs/test_fragments.py",
    ("docs/index.md", "python"): "docs/test_pages.py",
    ("docs/index.md", "sh"): "docs/test_pages.py",
    ("docs/index.md", "text"): "docs/test_pages.py",
    ("docs/kernel-bugs.md", "python"): "docs/test_kernel_bugs.py",
    ("docs/kernel-bugs.md", "text"): "docs/test_kernel_bugs.py",
    ("docs/lab.md", "python"): "docs/test_pages.py",
    ("docs/lab.md", "sh"): "docs/test_pages.py",
    ("docs/libraries.md", "python"): "docs/test_libraries.py",
    ("docs/libraries.md", "text"): "docs/test_libraries.py",
    ("docs/measuring.md", "python"): "docs/test_fragments.py",
    ("docs/new-user.md", "python"): "docs/test_pages.py",
    ("docs/new-user.md", "sh"): "docs/test_pages.py",
    ("docs/new-user.md", "text"): "docs/test_pages.py",
    ("docs/path-managers.md", "python"): "docs/test_fragments.py",
    ("docs/policies.md", "python"): "docs/test_fragments.py",
    ("docs/policies.md", "sh"): "docs/test_commands.py",
    ("docs/policies.md", "toml"): "docs/test_commands.py",
    ("docs/recipes.md", "python"): "socket/test_dropin.py",
    ("docs/recipes.md", "text"): "socket/test_dropin.py",
    ("docs/run.md", "sh"): "docs/test_commands.py",
    ("docs/sweeps.md", "bash"): "docs/test_sweeps.py",
    ("docs/sweeps.md", "python"): "docs/test_pages.py",
    ("docs/sweeps.md", "sh"): "docs/test_pages.py",
    ("docs/sweeps.md", "text"): "docs/test_pages.py",
    ("docs/sweeps.md", "yaml"): "docs/test_sweeps.py",
    ("docs/testing.md", "python"): "testing/test_pytest_plugin.py",
    ("docs/traces.md", "python"): "docs/test_fragments.py",
    ("docs/traces.md", "sh"): "docs/test_fragments.py",
    ("docs/tutorials/application.md", "python"): "docs/test_pages.py",
    ("docs/tutorials/application.md", "sh"): "docs/test_pages.py",
    ("docs/tutorials/application.md", "text"): "docs/test_pages.py",
    ("docs/tutorials/researcher.md", "python"): "docs/test_pages.py",
    ("docs/tutorials/researcher.md", "sh"): "docs/test_pages.py",
    ("docs/tutorials/tester.md", "python"): "docs/test_pages.py",
    ("docs/tutorials/tester.md", "sh"): "docs/test_pages.py",
    ("docs/tutorials/tester.md", "text"): "docs/test_pages.py",
    ("docs/why.md", "python"): "docs/test_fragments.py",
}

# By page, language and words of the block, of all blocks if there are none: why no test runs it.
PRINTED = "what the program beside it printed on the day that is given"
NOT_RUN = [
    ("README.md", "sh", "mptcp demo", ".ci/run runs it as printed"),
    ("README.md", "sh", "-m pytest", ".ci/run runs it as printed"),
    ("README.md", "sh", "jupyter execute", ".ci/run runs the notebooks, from the wheel"),
    ("CONTRIBUTING.md", "text", "", "a map; tests/architecture.rs compares it with src/"),
    ("CONTRIBUTING.md", "sh", "", "for developers; .ci/run runs most of it"),
    ("docs/benchmarks.md", "sh", "tests/benchmarks/all.py", "takes an hour, on an idle machine"),
    ("docs/benchmarks.md", "text", "", PRINTED),
    ("docs/broker.md", "sh", "mptcp broker &", "tests/broker/ starts it and runs programs of other users"),
    ("docs/broker.md", "sh", "systemctl", "needs a running systemd; tests/broker/test_units.py verifies the units"),
    ("docs/concepts.md", "text", "your program, pytest", "a map; compared with src/ below"),
    ("docs/conformance.md", "sh", "pytest -m conformance", "a part of every run of the tests"),
    ("docs/conformance.md", "sh", "linux-source", "needs a kernel's source"),
    ("docs/conformance.md", "sh", "cpython.py", ".ci/run runs it with --quick"),
    ("docs/containers.md", "text", "docker run", "needs Docker"),
    ("docs/containers.md", "text", "podman run", "needs Podman"),
    ("docs/containers.md", "yaml", "sysctl -w", "needs GitHub's runners"),
    ("docs/fuzzing.md", "sh", ".ci/fuzz", ".ci/run runs it for half a minute"),
    (
        "docs/fuzzing.md",
        "sh",
        "--hypothesis-profile=long",
        "takes twenty minutes; the short one is a part of the tests",
    ),
    ("docs/kernel-bugs.md", "text", "skmem", PRINTED),
    ("docs/kernels.md", "sh", ".ci/matrix", "takes hours in emulation"),
    ("docs/measuring.md", "sh", "recorder.py", "takes minutes, on an idle machine"),
    ("docs/measuring.md", "text", "bytes_retrans", "an equation; sampler/test_endings.py checks it"),
    ("docs/policies.md", "text", "on_connection", "printed once; cli/test_policy_verbose.py compares the form"),
    ("docs/run.md", "text", "", "the usage"),
    ("docs/run.md", "sh", "--user alice", "needs a user alice; supervisor/test_run_user.py has another one"),
    ("docs/scale.md", "sh", "scale.py", "takes minutes, on an idle machine"),
    ("docs/security.md", "text", "holds the lock", "a message; namespace/test_path_manager.py compares it"),
    ("docs/soak.md", "sh", "soak.py", "takes a quarter of an hour; soak/test_soak.py runs some rounds"),
    ("docs/subflow-options.md", "text", "buflen", "signatures; the stub is compared with them"),
    ("docs/testing.md", "text", "mptcp-captures", "printed once; testing/test_pytest_plugin.py compares the form"),
]


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line} ({self.language or 'no language'})"


def blocks_of(page: str, text: str) -> list[Block]:
    found: list[Block] = []
    inside: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r" *```(.*)$", line)
        if fence is None:
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside, begin, language = [], number, fence[1]
        else:
            found.append(Block(page, begin, language, "\n".join(inside)))
            inside = None
    assert inside is None, f"{page}: a block does not end"
    return found


def markdown_of_notebooks() -> list[tuple[str, str]]:
    return [
        (path.relative_to(ROOT).as_posix(), "".join(cell["source"]))
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "markdown"
    ]


def pages() -> list[tuple[str, str]]:
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths] + markdown_of_notebooks()


BLOCKS = [block for page, text in pages() for block in blocks_of(page, text)]


def reasons(block: Block) -> list[tuple[str, str, str, str]]:
    return [row for row in NOT_RUN if row[:2] == (block.page, block.language) and row[2] in block.text]


def test_every_block_is_run_or_has_a_reason() -> None:
    assert len(BLOCKS) > 200
    missing = [str(block) for block in BLOCKS if (block.page, block.language) not in RUN and not reasons(block)]
    assert missing == []


def test_no_entry_is_without_a_block() -> None:
    there = {(block.page, block.language) for block in BLOCKS}
    assert set(RUN) - there == set()
    concerned = [row for block in BLOCKS for row in reasons(block)]
    assert [row for row in NOT_RUN if row not in concerned] == []


def test_every_test_names_its_page() -> None:
    for (page, _), test in RUN.items():
        text = (TESTS / test).read_text()
        stem = re.escape(Path(page).with_suffix("").as_posix().removeprefix("docs/"))
        assert re.search(rf"\b{stem}(\.md)?\"", text), f"{test} does not name {page}"


def test_every_reason_names_what_exists() -> None:
    for *_, reason in NOT_RUN:
        for name in re.findall(r"[\w./]+\.(?:py|rs)\b", reason):
            assert (TESTS / name).exists() or not (ROOT / "src").exists() or (ROOT / name).exists(), reason


def test_no_block_is_only_indented() -> None:
    """Markdown takes four spaces for code, too, which nobody would count."""
    for page, text in pages():
        outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        assert re.findall(r"(?:\A|\n)\n {4}(?![-*] |\d+\. )\S.*", outside) == [], page


def test_every_folder_of_the_core_is_on_the_map_of_layers() -> None:
    source = ROOT / "src"
    if not source.exists():
        pytest.skip("needs a checkout: src/")
    [layers] = [block.text for block in BLOCKS if block.page == "docs/concepts.md"]
    folders = {path.name for path in source.iterdir() if path.is_dir()} - {"abi"}  # which everything uses
    assert folders - set(re.findall(r"src/(\w+)", layers)) == set()
