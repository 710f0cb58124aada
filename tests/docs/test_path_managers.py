"""docs/path-managers.md: its table names tests that exist, and everything in it has a call or a reason."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import mptcp
import pytest
from mptcp import _control

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "path-managers.md"


def rows() -> list[list[str]]:
    table = PAGE.read_text().partition("| there | here | test |")[2]
    lines = [line for line in table.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_test_that_the_table_names_exists() -> None:
    defined = {
        (path.name, name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set()
    for _, _, tests in rows():
        for file, names in re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+)", tests):
            named |= {(file, name) for name in re.findall(r"`(\w+)`", names)}
    assert len(named) > 15
    assert named - defined == set()


def test_every_row_has_a_call_with_a_test_or_a_reason() -> None:
    assert len(rows()) > 40
    for there, here, tests in rows():
        assert here, there
        if not tests:
            assert here.startswith("none"), there


def test_the_calls_of_the_table_are_ours() -> None:
    called = {name for _, here, _ in rows() for name in re.findall(r"`(\w+)\(", here)}
    known = {*dir(mptcp), *dir(_control.Control), *dir(mptcp.Policy)}
    assert called - known == set()


def missing(names: set[str]) -> set[str]:
    page = PAGE.read_text()
    return {name for name in names if not re.search(rf"\b{name}\b", page)}


def test_every_name_of_mptcpds_headers_has_a_row() -> None:
    """The functions that mptcpd exports, and those that a plugin is called by; of the version that is installed."""
    headers = [path.read_text() for path in Path("/usr/include/mptcpd").glob("*.h")]
    if not headers:
        pytest.skip("needs the headers of mptcpd (libmptcpd3-dev)")
    text = re.sub(r"/\*.*?\*/", "", "\n".join(headers), flags=re.DOTALL)
    names = {name for api in re.findall(r"MPTCPD_API ([^;{]*);", text) for name in re.findall(r"(mptcpd_\w+)\(", api)}
    names |= set(re.findall(r"\(\*(\w+)\)\(", text)) - {"mptcpd_complete_func_t", "mptcpd_kpm_get_addr_cb_t"}
    names -= {"mptcpd_pm_get_limits_cb"}  # how a call of the page's returns what it found
    assert len(names) > 35, names
    assert missing(names) == set()


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs ip of iproute2")
def test_every_word_of_ip_mptcp_has_a_row() -> None:
    help_text = subprocess.run(["ip", "mptcp", "help"], capture_output=True, text=True).stderr
    words = set(re.findall(r"\b[a-z]\w+\b", help_text.partition("ip mptcp")[2])) - {"ip", "mptcp", "subflows"}
    assert {"endpoint", "fullmesh", "monitor"} <= words
    assert missing(words) == set()
