"""Labs and commands on hosts that forbid things, as containers do: what is missing is named, with what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import NO_CAPABILITIES, ROOT, STRICT, needs

pytestmark = needs("unshare", "mount", "setpriv")

# A lab with one connection, which says what its host's sysctl is.
_LAB = """
import mptcp.lab
with mptcp.lab.two_paths() as (client, server, paths):
    with server.create_server(("", 5000)) as listener, client.create_connection(("10.0.1.2", 5000)) as sock:
        print(sock.is_mptcp, client.sysctl("net.ipv4.ip_default_ttl", 77), client.sysctl("net.ipv4.ip_default_ttl"))
"""
_RUN_LAB = [*STRICT, "-c", _LAB]
_MPTCP = [sys.executable, "-W", "error", "-m", "mptcp"]

# With a mount namespace of one's own, in which one is root.
_OWN_MOUNTS = ["unshare", "--mount"] if ROOT else ["unshare", "--user", "--map-root-user", "--mount"]
_READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "
_NESTED = "unshare --user --map-root-user "


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def shell(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(*_OWN_MOUNTS, "sh", "-c", f'{text} "$@"', "sh", *arguments)


def denied(call: str, number: str, *command: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, str(Path(__file__).parents[1] / "denied.py"), number, call, *command)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode != 0, done
    return done.stderr.rstrip().splitlines()[-1]


def test_read_only_proc_sys_is_remounted_for_the_lab_alone() -> None:
    done = shell(f"{_READ_ONLY} sh -c '\"$@\" && ! test -w /proc/sys/net/ipv4/ip_default_ttl' sh", *_RUN_LAB)
    assert (done.returncode, done.stdout) == (0, "True 64 77\n"), done


def test_read_only_proc_sys_that_may_not_be_remounted() -> None:
    text = last_line(shell(f"{_READ_ONLY} {_NESTED}", *_RUN_LAB))
    assert "/proc/sys is mounted read-only" in text
    assert "systempaths=unconfined" in text


@pytest.mark.skipif(not ROOT, reason="needs root to be uid 0 without capabilities")
def test_uid_0_without_capabilities_is_not_told_to_run_as_root() -> None:
    text = last_line(run(*NO_CAPABILITIES, *_RUN_LAB))
    assert "PermissionError" in text
    assert "--cap-add SYS_ADMIN" in text
    assert "run as root" not in text


def test_unshare_denied() -> None:
    text = last_line(denied("unshare", "EPERM", *_RUN_LAB))
    assert "PermissionError" in text
    assert ("--cap-add" if ROOT else "run as root") in text


@pytest.mark.skipif(not ROOT, reason="needs root: what a user namespace inherited cannot be unmounted in it")
def test_without_proc() -> None:
    text = last_line(shell("umount --lazy /proc && exec ", *_RUN_LAB))
    assert "a lab needs the proc file system" in text


def test_pidfd_open_denied() -> None:
    text = last_line(denied("pidfd_open", "EPERM", *_RUN_LAB))
    assert "PermissionError" in text
    assert "pidfd_open, which is denied here" in text
    text = last_line(denied("pidfd_open", "EPERM", sys.executable, "-c", "import mptcp; mptcp.attach(1, 0)"))
    assert "pidfd_open" in text


def test_no_netlink() -> None:
    for command in (_RUN_LAB, [*_MPTCP, "list"], [*_MPTCP, "events"]):
        text = last_line(denied("socket:16", "EAFNOSUPPORT", *command))
        assert "AF_NETLINK" in text
        assert "denied" in text


def test_descriptors_short() -> None:
    texts = []
    for limit in range(8, 20):
        done = run("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *_RUN_LAB)
        if done.returncode:
            texts.append(last_line(done))
            assert "Too many open files" in texts[-1]
    assert any("raise RLIMIT_NOFILE (ulimit -n)" in text for text in texts)


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("status", [0, 7])
def test_run_keeps_the_exit_status_without_standard_streams(closed: str, status: int) -> None:
    done = run("sh", "-c", f'exec "$@" {closed}', "sh", *_MPTCP, "run", "sh", "-c", f"exit {status}")
    assert done.returncode == status, done


def test_a_program_finds_closed_what_was_closed() -> None:
    program = "test -e /proc/self/fd/0 && ! test -e /proc/self/fd/1 && exit 5"
    done = run("sh", "-c", 'exec "$@" >&-', "sh", *_MPTCP, "run", "sh", "-c", program)
    assert done.returncode == 5, done
