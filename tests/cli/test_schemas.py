"""What --json prints is what docs/schemas says, for every command that has it."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp import cli, lab
from support import Connection, eventually

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: pip install 'mptcp[test]'")

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
COMMAND = [sys.executable, "-W", "error", "-m", "mptcp"]


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.json").read_text())
    return found


def check(name: str, text: str) -> Any:
    report = json.loads(text)
    jsonschema.Draft202012Validator(schema(name)).validate(report)
    return report


def printed(host: Any, *arguments: str) -> str:
    done = host.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text: str = done.stdout
    return text


def test_every_command_with_json_has_a_schema() -> None:
    commands = [module.name for module in pkgutil.iter_modules(cli.__path__) if module.name[0] != "_"]
    sources = {name: Path(str(importlib.import_module(f"mptcp.cli.{name}").__file__)).read_text() for name in commands}
    assert {name for name, text in sources.items() if '"--json"' in text} == {path.stem for path in SCHEMAS.iterdir()}


@pytest.mark.parametrize("name", sorted(path.stem for path in SCHEMAS.glob("*.json")))
def test_a_schema_is_one_and_demands_its_version(name: str) -> None:
    validator = jsonschema.Draft202012Validator
    validator.check_schema(schema(name))
    assert not validator(schema(name)).is_valid({"schema": 1})
    assert "schema" in schema(name)["required"]


def test_connections(connection: Connection) -> None:
    connection.sock.open_subflow(*connection.second)
    (found,) = check("list", printed(connection.client, "list", "--json"))["connections"]
    assert len(found["subflows"]) == 2
    lines = printed(connection.client, "watch", "--json", "--count=2", "--interval=0.1").splitlines()
    first, second = (check("watch", line)["connections"][0]["subflows"][0]["sent_bps"] for line in lines)
    assert first is None
    assert second is not None
    assert check("why", printed(connection.client, "why", "--json"))["connections"]


def test_events(connection: Connection) -> None:
    process = connection.client.popen([*COMMAND, "events", "--json", "--count=2"], stdout=subprocess.PIPE, text=True)
    ended = threading.Event()

    def change() -> None:
        # Until it listens, and has heard of one.
        while not ended.wait(0.2):
            connection.sock.open_subflow(*connection.second).close()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        ended.set()
        thread.join()
    assert {check("events", line)["kind"] for line in output.splitlines()} <= set(mptcp.EventKind.__members__)


def test_the_path_manager(connection: Connection) -> None:
    host = connection.client
    (added,) = check("endpoint", printed(host, "endpoint", "add", "192.0.2.1", "--subflow", "--json"))["endpoints"]
    assert added in check("endpoint", printed(host, "endpoint", "list", "--json"))["endpoints"]
    assert check("limits", printed(host, "limits", "--subflows=3", "--json"))["subflows"] == 3


def test_doctor() -> None:
    done = subprocess.run([*COMMAND, "doctor", "--json"], capture_output=True, text=True, timeout=60)
    check("doctor", done.stdout)


def test_trace(mptcp_two_paths: tuple[lab.Host, lab.Host, tuple[lab.Link, lab.Link]], tmp_path: Path) -> None:
    client, server, (wifi, _) = mptcp_two_paths
    with (
        wifi.capture(tmp_path / "wifi.pcapng"),
        lab.Transfer(client, server, [wifi]) as transfer,
    ):
        assert eventually(lambda: transfer.received > 100_000, 30)
    done = subprocess.run(
        [*COMMAND, "trace", "--json", str(tmp_path / "wifi.pcapng")], capture_output=True, text=True, timeout=60
    )
    assert check("trace", done.stdout)["connections"]


def test_policy(connection: Connection) -> None:
    process = connection.client.popen(
        [*COMMAND, "policy", "--json", "--builtin=fullmesh"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert check("policy", process.stdout.readline())["decision"]
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.usefixtures("mptcp_lab")
def test_demo() -> None:
    # On a busy machine the lab warns that frames were late.
    command = [sys.executable, "-m", "mptcp", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    check("demo", done.stdout)
