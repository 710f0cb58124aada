"""``userspace_pm.sh`` of the kernel's source, with ``pm_nl_ctl.py`` in place of its tool: see docs/conformance.md."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mptcp.lab import Host, Lab
from scenario import NEW_PORT, Network, Pair, announced, joins, priorities, removed
from support import PATIENCE, ROOT, eventually, needs

pytestmark = pytest.mark.conformance

TOOL = Path(__file__).with_name("pm_nl_ctl.py")
SELFTESTS = os.environ.get("MPTCP_SELFTESTS", "")


@pytest.mark.skipif(not SELFTESTS, reason="MPTCP_SELFTESTS names no tools/testing/selftests/net of a kernel's source")
@pytest.mark.skipif(not ROOT, reason="needs root: ip netns")
@pytest.mark.timeout(300 * PATIENCE)
@needs("cc", "ip", "nstat")
def test_the_script_passes() -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [str(Path(__file__).with_name("userspace_pm")), SELFTESTS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "not ok "))]
    assert len(results) > 30
    assert [line for line in results if not line.startswith("ok ") or "SKIP" in line] == []


def tool(host: Host, *words: object) -> None:
    done = host.run(
        [sys.executable, str(TOOL), *map(str, words)], capture_output=True, text=True, timeout=60 * PATIENCE
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), words


@pytest.mark.parametrize("side", ["client"], indirect=True)
def test_each_command_of_the_tool(network: Network, pair: Pair) -> None:
    here, there = pair.here, pair.there
    local, remote = network.address(here.host, 2), network.address(there.host, 2)
    token = here.sock.token
    with there.host.popen([sys.executable, str(TOOL), "listen", remote, str(NEW_PORT)]) as listener:
        try:
            tool(there.host, "ann", remote, "token", there.sock.token, "id", 23, "dev", "lo", "port", NEW_PORT)
            announced(there.host, here.host, 1, 1, ports=1)
            assert eventually(lambda: is_listening(there.host, remote))
            ends = ("rip", remote, "rport", NEW_PORT, "token", token)
            tool(here.host, "csf", "lip", local, "lid", 42, *ends)
            joins(here.host, there.host, 1, 1, 1)
        finally:
            listener.terminate()
    [subflow] = [each for each in here.sock.subflows() if not each.initial]
    assert (subflow.local_id, subflow.remote_id, subflow.remote[:2]) == (42, 23, (remote, NEW_PORT))
    tool(here.host, "set", local, "port", subflow.local[1], "flags", "backup", *ends)
    priorities(here.host, sent=1, received=0)
    tool(here.host, "dsf", "lip", local, "lport", subflow.local[1], *ends)
    pair.subflows(1)
    tool(there.host, "rem", "token", there.sock.token, "id", 23)
    removed(there.host, here.host, 1, 0)


def is_listening(host: Host, address: str) -> bool:
    wanted = f"[{address}]:{NEW_PORT}" if ":" in address else f"{address}:{NEW_PORT}"
    rows = host.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout.splitlines()
    return any(row.split()[3] == wanted for row in rows)


def test_the_tool_s_events(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    host.run(["ip", "link", "set", "lo", "up"], check=True)
    with host.popen([sys.executable, str(TOOL), "events"], stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            lines = process.stderr.fileno()
            os.set_blocking(lines, False)
            ports: list[int] = []
            text = b""

            def told() -> bool:
                """Of one of the listeners that come and go; nobody hears of those before the tool listens."""
                nonlocal text
                with host.create_server(("127.0.0.1", 0)) as listener:
                    ports.append(listener.getsockname()[1])
                with contextlib.suppress(BlockingIOError):
                    text += os.read(lines, 1 << 16)
                return any(b"type:16,family:2,saddr4:127.0.0.1,sport:%d\n" % port in text for port in ports)

            assert eventually(told)
        finally:
            process.kill()
