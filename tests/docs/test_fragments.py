"""The parts of programs on the older pages run, in order, with what the page takes for granted.

Programs that are whole have tests of their own, by page: test_blocks.py has the list.
"""

from __future__ import annotations

import gzip
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp import plot, policies
from mptcp.lab import Host
from support import PORT, Connection, exchange, has_bpf, needs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^( *)```(python|sh)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def programs(page: str, language: str = "python") -> list[str]:
    """The blocks of one language on a page, without the indentation of a list."""
    found = [match for match in BLOCK.finditer((DOCS / f"{page}.md").read_text()) if match[2] == language]
    return [re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE) for match in found]


def here(line: str) -> str:
    """A command line of a page, with this environment's mptcp."""
    return re.sub(r"\bmptcp (?=[a-z])", f"{sys.executable} -m mptcp ", line)


def in_host(host: Host, program: str, **named: Any) -> str:
    done = host.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, **named)
    assert done.returncode == 0, f"{program}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recorded(connection: Connection, _in_an_empty_folder: None) -> dict[str, Any]:
    """A transfer over two paths: its recording and trace, with the captures of its links as files."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="needs matplotlib: pip install 'mptcp[plot]'")
    names = ("wifi.pcapng", "lte.pcapng")
    captures = [path.capture(name, host="both") for path, name in zip(connection.paths, names, strict=True)]
    with mptcp.Recorder(connection.sock, 0.005) as rec:
        connection.sock.open_subflow(*connection.second)
        sender = threading.Thread(target=connection.sock.sendall, args=[bytes(1 << 20)])
        sender.start()
        received = 0
        while received < 1 << 20:
            received += len(connection.peer.recv(1 << 18))
        sender.join()
    for capture in captures:
        capture.close()
    return {
        "mptcp": mptcp,
        "plot": plot,
        "plt": plt,
        "rec": rec,
        "sock": connection.sock,
        "trace": mptcp.read_trace(*names),
        "ax": plt.figure().subplots(),
    }


@pytest.mark.filterwarnings("ignore:.*:UserWarning:matplotlib")
@pytest.mark.parametrize("page", ["gallery", "measuring"])
def test_what_is_drawn(recorded: dict[str, Any], page: str) -> None:
    for number, program in enumerate(programs(page)):
        exec(compile(program, f"{page}.md, {number}", "exec"), recorded)
        recorded["plt"].close("all")
    assert page != "measuring" or {"run.npz", "run.pdf"} <= {path.name for path in Path().iterdir()}


def test_captures(recorded: dict[str, Any]) -> None:
    read, _, export = programs("traces")
    exec(read, recorded)
    assert len(mptcp.read_trace("run.parquet").packets) > 100
    exec(export, recorded)
    shutil.copy("wifi.pcapng", "run.pcapng")
    Path("run.pcap.gz").write_bytes(gzip.compress(Path("lte.pcapng").read_bytes()))
    _, files = programs("traces", "sh")
    lines = [line for line in files.splitlines() if not line.startswith("tcpdump")]  # see below
    assert len(lines) == 4
    for line in lines:
        done = subprocess.run(["bash", "-ec", here(line)], capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, ""), line
    assert Path("run.png").exists()


@needs("tcpdump", "pkill")
def test_a_capture_by_tcpdump(connection: Connection) -> None:
    [line] = [line for line in programs("traces", "sh")[1].splitlines() if line.startswith("tcpdump")]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with connection.client.popen(["bash", "-c", here(line)], start_new_session=True, **pipe) as shell:

        def signalled(name: str) -> None:
            to_tcpdump = ["pkill", "--signal", name, "--session", str(shell.pid), "--exact", "tcpdump"]
            subprocess.run(to_tcpdump, check=True, timeout=60)

        assert shell.stderr is not None
        said = shell.stderr.readline()
        while "listening on" not in said:
            if not said or "permi" in said:
                shell.kill()
                pytest.skip(f"needs a tcpdump that captures in a lab: {said}")
            said = shell.stderr.readline()
        with connection.client.create_connection((connection.paths[0].address(connection.server), PORT)) as sock:
            peer, _ = connection.listener.accept()
            with peer:
                exchange(sock, peer)
        # The kernel hands packets over in blocks, once a second. At SIGUSR1 tcpdump says how many it has.
        until = time.monotonic() + 60
        while not re.match(r"tcpdump: \d{2,} packets captured", said):
            assert time.monotonic() < until, said
            signalled("USR1")
            said = shell.stderr.readline()
        signalled("INT")
        output, _ = shell.communicate(timeout=60)
    assert shell.returncode == 0
    assert "10.0.1.1" in output, output


@pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")
@pytest.mark.usefixtures("_in_an_empty_folder")
def test_live_traces(connection: Connection) -> None:
    everything, one = programs("traces", "sh")[0].splitlines()
    assert "--duration 10 " in everything
    assert "--token 3061532139 " in one
    for line in (
        everything.replace("--duration 10", "--duration 1"),
        one.replace("3061532139", str(connection.sock.token)),
    ):
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with connection.client.popen(["bash", "-c", f"exec {here(line)}"], **pipe) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "tracing\n"
            exchange(connection.sock, connection.peer)
            if "Ctrl+C" in line:
                process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, ""), line
        assert str(connection.sock.token) in output, output
    assert len(mptcp.read_trace("run.parquet").packets) > 0


@pytest.mark.skipif(not has_bpf(), reason="needs CAP_BPF and CAP_PERFMON in the initial user namespace")
def test_a_tracer(connection: Connection) -> None:
    _, program, _ = programs("traces")
    receiver = threading.Thread(target=swallow, args=[connection.peer])
    receiver.start()
    names: dict[str, Any] = {"mptcp": mptcp, "sock": connection.sock}
    exec(program, names)
    assert len(names["tracer"].trace.packets) > 100
    connection.sock.close()
    receiver.join(60)
    assert not receiver.is_alive()


def test_why(connection: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    [program] = programs("why")
    exec(f"import json\n{program}", {"sock": connection.sock})
    assert capsys.readouterr().out.rstrip().endswith(")")


def test_endpoints(connection: Connection) -> None:
    [program] = programs("path-managers")
    assert "10.0.2.1" in in_host(connection.client, program)


def test_policies(connection: Connection) -> None:
    until_enter, list_of_policies, greedy, both, replace = programs("policies")
    for name, path in zip(("eth1", "wlan0"), connection.paths, strict=True):
        until_enter = until_enter.replace(f'"{name}"', f'"{path.interface(connection.client)}"')
    assert in_host(connection.client, until_enter, input="\n") == "Press Enter to stop"
    exec(list_of_policies, {**vars(policies)})
    exec(f"import time\n{both}\nBoth('10.0.1.1', '10.0.2.1')", {})
    address = connection.paths[0].address(connection.server)
    with connection.server.create_server(("", 5001)) as listener:
        ends = threading.Thread(target=serve, args=[listener])
        ends.start()
        # Each opens a second subflow: the first one after a megabyte, the other one when the first subflow is lost.
        in_host(
            connection.client,
            f"import mptcp, time\n{greedy}\n{replace}\n"
            "with mptcp.run_policy(Greedy()), "
            f"mptcp.create_connection(({address!r}, 5001)) as sock:\n"
            "    sock.sendall(bytes(3_000_000))\n"
            "    until = time.monotonic() + 60\n"
            "    while len(sock.subflows()) < 2:\n"
            "        assert time.monotonic() < until\n"
            "        time.sleep(0.05)\n",
        )
        ends.join(60)
    assert not ends.is_alive()


def swallow(peer: mptcp.Socket) -> None:
    while peer.recv(1 << 18):
        pass


def serve(listener: mptcp.Socket) -> None:
    with listener.accept()[0] as peer:
        swallow(peer)
