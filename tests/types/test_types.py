"""Types: a user's program and the examples of the pages pass mypy and pyright, and every public type is known."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mptcp
import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).with_name("sample.py")
STUB = ROOT / "python" / "mptcp" / "_core.pyi"

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What recipes use of other libraries and these do not declare, by the words of a checker's message.
UNDECLARED = (
    "_create_connection",  # of http.client, which has it for its own subclasses
    '"ConnectionCls"',  # urllib3 assigns its own classes to it with a comment that silences the checkers
    '"write"',  # twisted's interfaces have no self
    '"stop"',
    '"run"',
    '"dashboard_address"',  # None, as distributed's documentation says
    '"items" for class "object"',  # redis: socket_keepalive_options
    "paramiko",
    '"is_authenticated"',
)
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What a page has introduced before a part of a program.
PREAMBLE = """
import json
from typing import Any
import mptcp
import mptcp.lab
import mptcp.plot
import mptcp.enhanced_api as api
from mptcp.policies import *
ax: Any = None
plt: Any = None
sock = mptcp.Socket()
[subflow] = sock.subflows()
local, remote = "10.0.2.1", "10.0.2.2"
level, optname, value = 6, 1, 1
rec = mptcp.load("run.parquet")
from mptcp import plot
trace = mptcp.read_trace("capture.pcapng")
"""

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What mypy knows of numpy is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPY_CACHE_DIR", str(tmp_path_factory.mktemp("mypy")))
        yield


def check(program: str, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a type checker, which finds this interpreter's packages."""
    if importlib.util.find_spec(program) is None:
        pytest.skip(f"{program} is not installed")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=850)


def pyright(*arguments: str | Path, cwd: Path, mode: str = "strict") -> subprocess.CompletedProcess[str]:
    (cwd / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": mode}))
    result = check("pyright", *arguments, cwd=cwd)
    if not any(words in result.stdout for words in ("Completed in", " error", "generalDiagnostics")):
        pytest.skip(f"pyright does not start here: {result.stderr[-300:]}")
    return result


def test_a_program_by_mypy(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path)
    result = check("mypy", "--strict", SAMPLE.name, cwd=tmp_path)
    assert result.stdout == "Success: no issues found in 1 source file\n", result.stdout + result.stderr


def test_a_program_by_pyright(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path)
    result = pyright(SAMPLE.name, cwd=tmp_path)
    assert "0 errors, 0 warnings" in result.stdout, result.stdout


def test_a_wrong_program_does_not_pass(tmp_path: Path) -> None:
    """Or the two above could not fail."""
    program = (
        SAMPLE.read_text() + "\n\ndef wrong(sock: mptcp.Socket) -> str:\n    return sock.subflows()[0].tcp_info.rtt\n"
    )
    (tmp_path / "wrong.py").write_text(program)
    assert "[return-value]" in check("mypy", "--strict", "wrong.py", cwd=tmp_path).stdout
    assert "1 error," in pyright("wrong.py", cwd=tmp_path, mode="basic").stdout


def test_every_public_type_is_known(tmp_path: Path) -> None:
    result = pyright("--verifytypes", "mptcp", "--ignoreexternal", cwd=tmp_path)
    assert "Type completeness score: 100%" in result.stdout, result.stdout


def is_whole(program: str) -> bool:
    """Whether a program on a page defines what it uses, or continues what the page has introduced."""
    imports = re.search("^(import|from) mptcp", program, re.MULTILINE)
    return bool(imports) and ("sock" not in program or bool(re.search(r"sock =|as sock|def .*sock", program)))


def is_installed(program: str) -> bool:
    """Whether every package that a program imports is installed."""
    names = set()
    for node in ast.walk(ast.parse(program)):
        names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
    return all(importlib.util.find_spec(name.split(".")[0]) for name in names)


def examples(folder: Path) -> set[str]:
    """Write the pages' programs into a folder, one a file; return the pages that have one."""
    pages = set()
    for page in PAGES:
        for number, match in enumerate(EXAMPLE.finditer(page.read_text())):
            if not is_installed(match[1]):
                continue
            name = f"{page.stem.replace('-', '_').lower()}_{number}.py"
            (folder / name).write_text(match[1] if is_whole(match[1]) else PREAMBLE + match[1])
            pages.add(page.stem)
    assert {"README", "recipes", "differences", "libraries"} <= pages
    return pages


def unexpected(messages: list[str]) -> list[str]:
    return [message for message in messages if not any(words in message for words in UNDECLARED)]


def test_the_pages_examples_by_mypy(tmp_path: Path) -> None:
    examples(tmp_path)
    disabled = [f"--disable-error-code={code}" for code in ("func-returns-value", "import-untyped")]
    result = check("mypy", "--check-untyped-defs", "--scripts-are-modules", *disabled, ".", cwd=tmp_path)
    assert re.search(r"^(Success|Found)", result.stdout, re.MULTILINE), result.stdout + result.stderr
    assert unexpected(re.findall(r".*: error: .*", result.stdout)) == []


def test_the_pages_examples_by_pyright(tmp_path: Path) -> None:
    examples(tmp_path)
    result = json.loads(pyright("--outputjson", ".", cwd=tmp_path, mode="basic").stdout)
    assert result["summary"]["filesAnalyzed"] == len(list(tmp_path.glob("*.py")))
    errors = [found for found in result["generalDiagnostics"] if found["severity"] == "error"]
    messages = [f"{Path(found['file']).name}: {found['message']}" for found in errors]
    assert unexpected(messages) == []


@pytest.mark.parametrize("line", ["mptcp.create_connection(5)", "mptcp.Socket().subflows().rtt", "import nothing"])
def test_a_wrong_example_does_not_pass(tmp_path: Path, line: str) -> None:
    """Or the two above could not fail."""
    (tmp_path / "wrong.py").write_text(f"import mptcp\n{line}\n")
    assert unexpected(re.findall(r".*: error: .*", check("mypy", "wrong.py", cwd=tmp_path).stdout))
    found = json.loads(pyright("--outputjson", "wrong.py", cwd=tmp_path, mode="basic").stdout)["generalDiagnostics"]
    assert unexpected([each["message"] for each in found])


# What the stub says of the kernel's structures


def fields(name: str) -> dict[str, str]:
    """The fields of a structure with their annotations."""
    if not STUB.exists():
        pytest.skip("needs a checkout: python/mptcp/_core.pyi")
    classes = {node.name: node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)}
    properties = [node for node in classes[name].body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    return {node.name: ast.unparse(node.returns) for node in properties if node.returns}


def test_fields_that_are_always_there(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    """On the oldest supported kernel, 6.1, this test says that no field is typed as int too early."""
    sock, _ = pair
    for name, read in (("Info", sock.info()), ("TcpInfo", sock.subflows()[0].tcp_info)):
        annotations = fields(name)
        assert set(annotations.values()) == {"int", "int | None"}
        values = read.asdict()
        assert values.keys() == annotations.keys()
        assert [field for field, value in values.items() if value is None and annotations[field] == "int"] == []
    assert fields("TcpInfo")["rtt"] == "int"
    assert fields("TcpInfo")["rcv_wnd"] == fields("Info")["bytes_sent"] == "int | None"
