"""``mptcp broker``: do for ordinary users what needs CAP_NET_ADMIN, on connections that are their own."""

from __future__ import annotations

import argparse
import contextlib
import importlib.resources
import os
import pwd
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mptcp import _broker, _core
from mptcp._path_manager import get_path_manager, set_path_manager

SUMMARY = "let ordinary users control the subflows of their own connections"

_RULES = Path("/etc/mptcp/broker.toml")
_UNITS = Path("/etc/systemd/system")
# <systemd/sd-daemon.h>: the first descriptor that a service manager passes.
_FIRST_PASSED = 3
_BACKLOG = 128
# Seconds that the broker may take to end.
_ENDING = 5.0
# Each of up to 1,024 connections has two descriptors.
_DESCRIPTORS = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Needs CAP_NET_ADMIN, and CAP_BPF and CAP_PERFMON for socket options on one subflow. It serves the network "
        "namespace that it is started in until SIGINT or SIGTERM. A service manager may pass the listening socket "
        "(systemd's broker.socket, see --install)."
    )
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help=f"where to listen (default: {_core.BROKER_PATH}); programs find another place by MPTCP_BROKER",
    )
    parser.add_argument(
        "--rules",
        type=Path,
        metavar="FILE",
        help=f"a TOML file that says what is allowed to whom (default: {_RULES} if it exists, otherwise everybody may "
        "change connections of their own)",
    )
    parser.add_argument(
        "--user",
        type=_user,
        metavar="NAME",
        help="the user that it runs as (default: nobody, if it is started as root)",
    )
    parser.add_argument("--check", type=Path, metavar="RULES", help="check a file of rules and exit")
    parser.add_argument(
        "--install",
        nargs="?",
        type=Path,
        const=_UNITS,
        metavar="FOLDER",
        help=f"install the systemd units, in {_UNITS} by default, and exit",
    )


def _user(text: str) -> int:
    try:
        uid = int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"there is no user {text}") from None
    if uid == 0:
        raise argparse.ArgumentTypeError("the user must not be root")
    return uid


def run(arguments: argparse.Namespace) -> int:
    try:
        if arguments.check:
            number = len(_broker.read_rules(arguments.check))
            print(f"{arguments.check}: {number} rule{'s' * (number != 1)}")
            return 0
        rules = _rules(arguments.rules)
    except ValueError as error:
        print(f"mptcp broker: {error}", file=sys.stderr)
        return 2
    if arguments.install:
        return _install(arguments.install)
    uid: int | None = arguments.user
    if uid is None and os.geteuid() == 0:
        uid = pwd.getpwnam("nobody").pw_uid
    # Blocked before there are threads, so that none of them receives what the keeper waits for.
    ends = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*ends, signal.SIGCHLD})
    try:
        with _listener(arguments.socket) as listener:
            return _keep(listener, rules, uid, ends)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _rules(path: Path | None) -> list[_broker.Rule]:
    if path is None and not _RULES.exists():
        return [_broker.DEFAULT]
    return _broker.read_rules(path or _RULES)


@contextlib.contextmanager
def _listener(path: Path | None) -> Iterator[socket.socket]:
    """Yield the socket that the service manager passed, or one of our own, which is removed at the end."""
    if path is None and os.environ.get("LISTEN_PID") == str(os.getpid()):
        with socket.socket(fileno=_FIRST_PASSED) as passed:
            if (passed.family, passed.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
                raise OSError(0, "the socket passed by the service manager must be ListenSequentialPacket=")
            yield passed
        return
    path = path or Path(_core.BROKER_PATH)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
        _remove_stale(path)
        own.bind(str(path))
        try:
            # Who may do what is the rules' to say.
            path.chmod(0o666)
            own.listen(_BACKLOG)
            yield own
        finally:
            path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a broker that was killed."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(0, f"another broker listens on {path}")


def _keep(listener: socket.socket, rules: list[_broker.Rule], uid: int | None, ends: set[signal.Signals]) -> int:
    """Run the broker in a process of its own, and put back what that leaves behind even if it is killed."""
    journal = os.memfd_create("mptcp-broker")
    stop, told = os.pipe()
    serves, ready = os.pipe()
    server = os.fork()
    if server == 0:
        os.close(told)
        os.close(serves)
        _serve(listener, stop, journal, ready, rules, uid)
    os.close(stop)
    os.close(ready)
    # Until it has dropped its privileges and serves, or has ended.
    if os.read(serves, 1):
        print(f"mptcp broker: listening on {listener.getsockname() or 'a passed socket'}", file=sys.stderr, flush=True)
        _notify("READY=1")
    os.close(serves)
    while True:
        number = signal.sigwait({*ends, signal.SIGCHLD})
        if number in ends:
            os.close(told)  # the other end becomes readable
            _await_end(server)
            break
        if _has_ended(server):
            break
    _, status = os.waitpid(server, 0)
    _put_back(journal)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print(f"mptcp broker: killed by signal {-code}", file=sys.stderr)
    return code if code >= 0 else 1


def _has_ended(server: int) -> bool:
    return os.waitid(os.P_PID, server, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _await_end(server: int) -> None:
    """Wait until the broker has ended; it is killed if that takes long."""
    end = time.monotonic() + _ENDING
    while not _has_ended(server):
        if (left := end - time.monotonic()) <= 0:
            os.kill(server, signal.SIGKILL)
            return
        signal.sigtimedwait({signal.SIGCHLD}, left)


def _serve(
    listener: socket.socket, stop: int, journal: int, ready: int, rules: list[_broker.Rule], uid: int | None
) -> None:
    """Serve and end this process."""
    status = 1
    try:
        _allow_descriptors()
        if uid is not None:
            os.setgroups([])
            os.setresgid(*[pwd.getpwuid(uid).pw_gid] * 3)
        _core.serve_broker(listener.fileno(), stop, journal, ready, rules, uid)
        status = 0
    except (OSError, ValueError) as error:
        print(f"mptcp broker: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _allow_descriptors() -> None:
    """Raise the limit of open files as far as it may be."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(_DESCRIPTORS, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        # A unit's SystemCallFilter= may refuse it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _put_back(journal: int) -> None:
    """Put the path manager back that a killed broker had changed for a moment."""
    if (before := os.pread(journal, 64, 0).rstrip(b"\0").decode()) and get_path_manager() != before:
        set_path_manager(before)


def _notify(state: str) -> None:
    """Tell the service manager (sd_notify)."""
    if path := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + path[1:] if path.startswith("@") else path)
            manager.sendall(state.encode())


def _install(folder: Path) -> int:
    program = shutil.which(sys.argv[0]) or shutil.which("mptcp") or sys.argv[0]
    units = importlib.resources.files("mptcp") / "systemd"
    folder.mkdir(parents=True, exist_ok=True)
    for unit in sorted(units.iterdir(), key=lambda unit: unit.name):
        if not unit.name.startswith("mptcp-broker"):
            continue
        target = folder / unit.name
        target.write_text(unit.read_text().replace("/usr/bin/mptcp", str(Path(program).resolve())))
        print(target)
    print("now: systemctl daemon-reload && systemctl enable --now mptcp-broker.socket", file=sys.stderr)
    return 0
