"""The helper process of a lab: it creates the namespaces and ensures that nothing outlives the lab.

Started by mptcp.lab._lab with its end of the channel and the process it belongs to.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from mptcp.lab import _channel, _namespaces


@dataclass(frozen=True)
class _Process:
    pid: int
    lifeline: socket.socket
    # Held open until the end: a namespace's identity stays its own for as long as some process has it open.
    namespace: int


@dataclass(frozen=True)
class _Started:
    """A process that has not reported its state yet."""

    pid: int
    lifeline: socket.socket
    channel: socket.socket


class _Helper:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._processes: list[_Process] = []
        self._starting: list[_Started] = []

    def start(self, seed: int) -> _channel.Reply:
        """Obtain the right to create namespaces; return whether that took a user namespace."""
        self._seed = seed
        own_user_namespace = not _namespaces.may_make_network_namespaces()
        if own_user_namespace:
            _namespaces.enter_new_user_namespace()
        return own_user_namespace, []

    def host(self, forwarding: bool) -> _channel.Reply:
        """Start a host's process and return the caller's end of its channel and its namespaces."""
        from mptcp.lab import _host_process

        def run(channel: socket.socket, lifeline: socket.socket) -> None:
            _host_process.main(channel, lifeline, forwarding)

        return self._start(run, "a new host")

    def middle(self) -> _channel.Reply:
        """Return the caller's end of the channel of the links' middle, whose process was started with the lab."""
        if self._middle not in self._starting:
            # It failed before.
            self.start_middle()
        result, (channel, *namespaces) = self._wait_for(self._middle, "the middle of the links")
        _channel.close_all(namespaces)
        return result, [channel]

    def start_middle(self) -> None:
        """Start the process of the links' middle, without waiting for it: most labs need it, but not at once."""
        from mptcp.lab import _middle

        seed = self._seed

        def run(channel: socket.socket, lifeline: socket.socket) -> None:
            _middle.main(channel, lifeline, seed)

        self._middle = self._fork(run)

    def _start(self, run: Callable[[socket.socket, socket.socket], None], name: str) -> _channel.Reply:
        return self._wait_for(self._fork(run), name)

    def _fork(self, run: Callable[[socket.socket, socket.socket], None]) -> _Started:
        """Fork a process and return the caller's end of its channel, and its lifeline."""
        ours, theirs = _channel.pair()
        lifeline, their_lifeline = _channel.pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become(run, theirs, their_lifeline, lifeline)
        theirs.close()
        their_lifeline.close()
        started = _Started(pid, lifeline, ours)
        self._starting.append(started)
        return started

    def _wait_for(self, started: _Started, name: str) -> _channel.Reply:
        """Wait until a process has its namespace; return the caller's end of its channel and its namespaces."""
        received = _channel.receive(started.lifeline)
        if received is None:
            received = {"defect": f"the process of {name}, {started.pid}, ended immediately"}, []
        reply, namespaces = received
        self._starting.remove(started)
        try:
            result = _channel.result_of(reply)
        except BaseException:
            started.channel.close()
            started.lifeline.close()
            os.waitpid(started.pid, 0)
            raise
        self._processes.append(_Process(started.pid, started.lifeline, os.dup(namespaces[0])))
        return result, [started.channel.detach(), *namespaces]

    def _become(
        self,
        run: Callable[[socket.socket, socket.socket], None],
        channel: socket.socket,
        lifeline: socket.socket,
        other_end: socket.socket,
    ) -> NoReturn:
        """In the forked process: close what belongs only to the helper, and run to the end."""
        status = 1
        try:
            # A copy of any lifeline's other end would keep that process alive when the helper is gone.
            other_end.close()
            self._channel.close()
            for process in self._processes:
                process.lifeline.close()
                os.close(process.namespace)
            for started in self._starting:
                started.lifeline.close()
                started.channel.close()
            run(channel, lifeline)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def end(self) -> None:
        """End every program of the lab, and its hosts last."""
        identities = {_namespaces.identity(process.namespace) for process in self._processes}
        # The lab's user may have moved itself into a host, and must not be killed.
        ours = [*(process.pid for process in self._processes), *(started.pid for started in self._starting)]
        spare = {os.getpid(), os.getppid(), *ours}
        if identities:
            _namespaces.kill_programs(identities, spare)
        for pid in ours:
            # Not reaped before, so the number is still that process's.
            os.kill(pid, signal.SIGKILL)
        for pid in ours:
            os.waitpid(pid, 0)


def main(descriptor: int, parent: int) -> None:
    channel = socket.socket(fileno=descriptor)
    try:
        _serve(channel, parent)
    except BaseException as error:
        _channel.send_last(channel, error)


def _serve(channel: socket.socket, parent: int) -> None:
    # Before anything that needs it, so that this is what is reported.
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
    # Here rather than in every process, and while the user goes on.
    from mptcp.lab import _host_process, _middle  # noqa: F401

    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(parent_process, select.POLLIN)
    try:
        helper.start_middle()
        while parent_process not in {ready for ready, _ in poll.poll()}:
            if not _channel.serve_one(channel, {"host": helper.host, "middle": helper.middle}):
                break
    finally:
        helper.end()


def run(descriptor: int, parent: int) -> NoReturn:
    """Be the helper process of a lab, whose end of the channel and whose own process these are."""
    main(descriptor, parent)
    # Taking all the modules apart would be a large part of the time that closing a lab takes.
    os._exit(0)
