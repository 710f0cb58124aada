"""What ``userspace_pm.sh`` uses of the kernel self-tests' tool ``pm_nl_ctl``, over this package's public interface.

``tests/conformance/userspace_pm`` puts it in place of that tool: see docs/conformance.md.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from ipaddress import ip_address

import mptcp
from mptcp import Event, EventKind


def ann(arguments: argparse.Namespace) -> None:
    connection(arguments.token).announce_address(
        arguments.address, arguments.port, address_id=arguments.id, listen=False
    )


def rem(arguments: argparse.Namespace) -> None:
    connection(arguments.token).remove_address(arguments.id, force=True)


def csf(arguments: argparse.Namespace) -> None:
    remote = (arguments.rip, arguments.rport)
    connection(arguments.token).open_subflow(arguments.lip, remote, local_id=arguments.lid)


def dsf(arguments: argparse.Namespace) -> None:
    found = connection(arguments.token)
    found.close_subflow(subflow(found, (arguments.lip, arguments.lport), (arguments.rip, arguments.rport)))


def set_(arguments: argparse.Namespace) -> None:
    found = connection(arguments.token)
    ends = (arguments.address, arguments.port), (arguments.rip, arguments.rport)
    subflow(found, *ends).set_backup(arguments.flags == "backup")


def listen(arguments: argparse.Namespace) -> None:
    """Until a signal ends it."""
    family = socket.AF_INET6 if ":" in arguments.address else socket.AF_INET
    with mptcp.create_server((arguments.address, arguments.port), family=family):
        signal.pause()


def events(arguments: argparse.Namespace) -> None:
    with mptcp.Events() as stream:
        for event in (event for event in stream if event.kind in KINDS):
            print(line(event), file=sys.stderr, flush=True)


#: enum mptcp_event_type of <linux/mptcp_pm.h>
KINDS = {
    EventKind.CREATED: 1,
    EventKind.ESTABLISHED: 2,
    EventKind.CLOSED: 3,
    EventKind.ANNOUNCED: 6,
    EventKind.REMOVED: 7,
    EventKind.SUB_ESTABLISHED: 10,
    EventKind.SUB_CLOSED: 11,
    EventKind.SUB_PRIORITY: 13,
    EventKind.LISTENER_CREATED: 15,
    EventKind.LISTENER_CLOSED: 16,
}


def line(event: Event) -> str:
    """As the tool of the kernel prints it: ``type:1,token:...``, without what the kernel did not tell."""
    fields: list[tuple[str, object]] = [("type", KINDS[event.kind]), ("token", event.token)]
    ends = [(end, letter) for end, letter in ((event.local, "s"), (event.remote, "d")) if end]
    if ends:
        version = ip_address(ends[0][0][0]).version
        fields.append(("family", int(socket.AF_INET6 if version == 6 else socket.AF_INET)))
    for (address, port, *_), letter in ends:
        fields += [(f"{letter}addr{ip_address(address).version}", address), (f"{letter}port", port)]
    fields += [("loc_id", event.local_id), ("rem_id", event.remote_id), ("backup", event.backup)]
    fields += [("error", event.error), ("server_side", event.server_side)]
    fields.append(("deny_join_id0", event.deny_join_initial or None))
    told = [(name, int(value) if isinstance(value, bool) else value) for name, value in fields if value is not None]
    return ",".join(f"{name}:{value}" for name, value in told)


def connection(token: int) -> mptcp.Connection:
    found = mptcp.connections(token=token)
    if not found:
        raise SystemExit(f"no connection has the token {token}")
    return found[0]


def subflow(found: mptcp.Connection, local: tuple[str, int], remote: tuple[str, int]) -> mptcp.Subflow:
    def ends(each: mptcp.Subflow) -> list[tuple[str, int]]:
        return [(end[0].removeprefix("::ffff:"), end[1]) for end in (each.local, each.remote)]

    for each in found.subflows():
        if ends(each) == [local, remote]:
            return each
    raise SystemExit(f"no subflow from {local} to {remote}")


COMMANDS = {"ann": ann, "rem": rem, "csf": csf, "dsf": dsf, "set": set_, "listen": listen, "events": events}
NUMBERS = {"token", "id", "lid", "port", "lport", "rport"}


def parse(words: list[str]) -> argparse.Namespace:
    """``ann ADDRESS token N id N ...``: words that name a value come before it, the rest are an address and a port."""
    arguments = argparse.Namespace(command=words[0], address=None, port=None, id=None, lid=None, rip=None, flags=None)
    rest = iter(words[1:])
    for word in rest:
        if word in {"token", "id", "lid", "lip", "rip", "port", "lport", "rport", "dev", "flags"}:
            value = next(rest)
            setattr(arguments, word, int(value) if word in NUMBERS else value)
        elif arguments.address is None:
            arguments.address = word
        else:
            arguments.port = int(word)
    return arguments


if __name__ == "__main__":
    arguments = parse(sys.argv[1:])
    try:
        COMMANDS[arguments.command](arguments)
    except (OSError, ValueError) as error:
        raise SystemExit(f"pm_nl_ctl {arguments.command}: {error}") from None
