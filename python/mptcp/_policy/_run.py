"""Starting and ending policies: what is held while they run, and what is restored."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Self

from .. import _core, _interrupts
from .._path_manager import set_path_manager
from ._policy import Policy
from ._turn import OpenSocket, take


class RunningPolicies:
    """Running policies, returned by run_policy(). They end with the with-block, by close(), or when this is deleted."""

    def __init__(
        self,
        policies: tuple[Policy, ...],
        open_socket: OpenSocket,
        set_path_manager: Callable[[str], str],
        *,
        own: bool = False,
    ) -> None:
        # Imported here, because it and logging take half as long as the whole package.
        from ._checks import check
        from ._kernel import NetworkNamespace
        from ._runtime import Runtime

        check(policies)
        self._held = contextlib.ExitStack()
        self._sockets: tuple[socket.socket, ...] = ()
        self._policies = policies
        _running.add(self)
        try:
            with _interrupts.put_off(), contextlib.ExitStack() as stack:
                turn = stack.enter_context(take(open_socket))
                self._sockets = (turn,)
                # This socket gives access to the namespace.
                place = stack.enter_context(open_socket(socket.AF_INET, socket.SOCK_DGRAM, 0))
                self._sockets = turn, place
                uid = _use_userspace(stack, set_path_manager)
                uid = os.geteuid() if own else uid
                runtime = Runtime(policies, NetworkNamespace(place.fileno()), uid=uid)
                stack.callback(runtime.stop)
                # A weak reference, so that policies end when nothing holds them.
                stack.enter_context(_ended_by_sigterm(weakref.WeakMethod(self.close)))
                runtime.start()
                self._held = stack.pop_all()
        except BaseException:
            # They may have been started already when SIGINT came.
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop calling the policies and restore the path manager. Subflows that policies opened stay open.

        Waits up to 5 s for each policy's running callback. Calling it again has no effect, and neither has calling it
        in a forked child: the policies are its parent's.
        """
        with _interrupts.put_off():
            self._held.close()

    def __del__(self) -> None:
        # An interrupt may arrive after they have been started and before anything holds them.
        if hasattr(self, "_held"):
            self._held.close()

    def _leave_to_parent(self) -> None:
        """In a forked child: hold nothing of what is the parent's."""
        self._held.pop_all()
        for sock in self._sockets:
            sock.close()
        for policy in self._policies:
            policy._runtime = None


def _use_userspace(stack: contextlib.ExitStack, set_path_manager: Callable[[str], str]) -> int | None:
    """Have new connections under the userspace path manager until the end of ``stack``.

    Where only a broker may, it is each socket's own choice, and policies are run for connections of the user who is
    returned.
    """
    try:
        before = set_path_manager("userspace")
    except PermissionError:
        broker = _core.find_broker()
        if broker is None or "own" not in broker[1]:
            raise
        return os.geteuid()
    stack.callback(set_path_manager, before)
    return None


# For forked children.
_running: weakref.WeakSet[RunningPolicies] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for running in list(_running):
        running._leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)


def run_policy(*policies: Policy, own: bool = False) -> RunningPolicies:
    """Run policies for every connection of the calling thread's network namespace, whoever owns it.

    With ``own``, only for connections of the calling process's effective user; those of others stay as they are.

    Use it in a with-block. on_connection() is first called for the connections that exist. The namespace has the
    userspace path manager until the end, which new connections latch; then the previous one is restored, also where
    SIGTERM ends the process by its default action. In-kernel endpoints are not touched: they act only on connections
    under the in-kernel path manager.

    Uses a thread that calls the policy and one that stands by, and two of the core that read the namespace's events;
    up to 31 more of each while the locks of connections are held. Of several policies each has a thread more.

    Generic netlink mptcp_pm, sock_diag and rtnetlink. Needs CAP_NET_ADMIN in the user namespace that owns the
    network namespace. Without it, and with a broker (`mptcp broker`), policies run for connections of the calling
    user alone, and only those act whose socket was created with ``path_manager="userspace"``.

    Raises TypeError for what is not a Policy and for one with a misspelt callback, a callback that takes other
    arguments, or a coroutine; ValueError without a policy, for a policy that already runs, and for a path that the
    network namespace does not have; PermissionError without the privilege; OSError (EBUSY) if policies run in this
    network namespace already, in this process or another; and what set_path_manager() raises.
    """
    return RunningPolicies(policies, socket.socket, set_path_manager, own=own)


@contextlib.contextmanager
def _ended_by_sigterm(close: Callable[[], Callable[[], None] | None]) -> Iterator[None]:
    """Make SIGTERM end the policies before it ends the process, where ending it is its only effect."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == process and (act := close()) is not None:
            act()
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
