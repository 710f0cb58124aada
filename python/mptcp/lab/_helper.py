"""The helper process of a lab: it makes the namespaces and sees to it that nothing outlives the lab.

Started as ``python -m mptcp.lab._helper DESCRIPTOR PID``: its end of the channel, and the process it belongs to.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn

from mptcp.lab import _channel, _namespaces


@dataclass(frozen=True)
class _HostProcess:
    pid: int
    lifeline: socket.socket
    # Held open until the end: a namespace's identity stays its own for as long as somebody has it open.
    namespace: int


class _Helper:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._hosts: list[_HostProcess] = []

    def start(self) -> _channel.Reply:
        """Get into the position to make namespaces; return whether that took a user namespace."""
        own_user_namespace = not _namespaces.may_make_network_namespaces()
        if own_user_namespace:
            _namespaces.enter_new_user_namespace()
        return own_user_namespace, []

    def host(self, forwarding: bool) -> _channel.Reply:
        """Start a host's process and return the caller's end of its channel and its namespaces."""
        ours, theirs = _channel.pair()
        lifeline, their_lifeline = _channel.pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_host(theirs, their_lifeline, lifeline, forwarding)
        theirs.close()
        their_lifeline.close()
        received = _channel.receive(lifeline)
        if received is None:
            received = {"defect": f"the process of a new host, {pid}, ended at once"}, []
        reply, namespaces = received
        try:
            result = _channel.result_of(reply)
        except BaseException:
            ours.close()
            lifeline.close()
            os.waitpid(pid, 0)
            raise
        self._hosts.append(_HostProcess(pid, lifeline, os.dup(namespaces[0])))
        return result, [ours.detach(), *namespaces]

    def _become_host(
        self, channel: socket.socket, lifeline: socket.socket, other_end: socket.socket, forwarding: bool
    ) -> NoReturn:
        """In the forked process: let go of what is the helper's alone and run the host to its end."""
        status = 1
        try:
            # A copy of any lifeline's other end would keep that host alive when the helper is gone.
            other_end.close()
            self._channel.close()
            for host in self._hosts:
                host.lifeline.close()
                os.close(host.namespace)
            from mptcp.lab import _host_process

            _host_process.main(channel, lifeline, forwarding)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def end(self) -> None:
        """End every program of the lab, and its hosts last."""
        identities = {_namespaces.identity(host.namespace) for host in self._hosts}
        # The lab's user may have moved himself into a host; he is not ours to end.
        spare = {os.getpid(), os.getppid(), *(host.pid for host in self._hosts)}
        if identities:
            _namespaces.kill_programs(identities, spare)
        for host in self._hosts:
            # Not reaped before, so the number is still that process's.
            os.kill(host.pid, signal.SIGKILL)
        for host in self._hosts:
            os.waitpid(host.pid, 0)


def main(descriptor: int, parent: int) -> None:
    channel = socket.socket(fileno=descriptor)
    try:
        _serve(channel, parent)
    except BaseException as error:
        _channel.send_last(channel, error)


def _serve(channel: socket.socket, parent: int) -> None:
    # Before anything that needs it, so that it is this that is reported.
    _namespaces.check_host()
    # The end of the channel is not enough to know that the parent is gone: a process that it forked has a copy.
    try:
        parent_process = os.pidfd_open(parent)
    except ProcessLookupError:
        return
    if os.getppid() != parent:
        return
    helper = _Helper(channel)
    if not _channel.serve_one(channel, {"start": helper.start}):
        return
    # Here rather than in every host, and while the user goes on: it takes a while to load.
    from mptcp.lab import _network  # noqa: F401

    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(parent_process, select.POLLIN)
    try:
        while parent_process not in {ready for ready, _ in poll.poll()}:
            if not _channel.serve_one(channel, {"host": helper.host}):
                break
    finally:
        helper.end()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    # Taking all the modules apart would be a large part of the time that closing a lab takes.
    os._exit(0)
