"""The runtime of policies: it passes on what the watcher reports of a namespace's connections."""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .. import _connection, _core
from .._address import endpoint
from .._core import Event, Subflow
from .._errors import SubflowError, UnsupportedError
from .._event_kind import EventKind
from ._callbacks import Callbacks, Reporter, log
from ._connection import (
    Attempt,
    DirectConnection,
    Ends,
    PolicyConnection,
    is_not_fully_established,
    plain,
    plain_host,
)
from ._interface import LocalAddress, Opening
from ._journal import LOGGER, Journal, options_by_name
from ._kernel import Kernel
from ._policy import Policy
from ._progress import Progress
from ._timed import Timed

# The states of a connection to which no subflow can be added any more.
_SHUT_DOWN = {None, "FIN_WAIT1", "FIN_WAIT2", "CLOSING", "LAST_ACK", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"}

# How many changes of subflows of a connection are remembered, in case they fail.
_CHANGES = 64

# What the watcher calls itself when it reports one of these: what is known is written down afterwards.
_AT_ONCE = {
    "lost": "on_subflow_lost",
    "announced": "on_address_announced",
    "removed": "on_address_removed",
    "link down": "on_link_down",
    "address removed": "on_address",
}

# An event of what is gone already arrives within this time, unless it was lost.
_GRACE = 0.1

# A callback that is running may go on for so long when the runtime is stopped.
_PATIENCE = 5.0


class Runtime:
    """Takes the reports of one network namespace and calls the policies."""

    def __init__(
        self, policies: Sequence[Policy], kernel: Kernel, report: Reporter = log, *, uid: int | None = None
    ) -> None:
        self.lock = threading.RLock()
        # Held by a policy of paths from its look at a connection until it has opened what was missing: two that look
        # at once would both find it missing. Never taken with the lock above held.
        self.deciding = threading.RLock()
        self._policies = policies
        self._kernel = kernel
        # Only connections of this user, if it is given.
        self._uid = uid
        self._connections: dict[int, PolicyConnection] = {}
        # Copied without a function of Python: a policy may ask between an event and its command.
        self.connections: Callable[[], list[PolicyConnection]] = functools.partial(list, self._connections.values())
        self._addresses: list[LocalAddress] = []
        self._interfaces: dict[str, str] = {}
        self._holders: dict[int, int | None] = {}
        has_threads = len(policies) > 1
        self._journal = Journal.wanted(self.now)
        self._callbacks = [
            Callbacks(policy, self._has_ended, has_threads, report, self._journal) for policy in policies
        ]
        # The only policy, which is called by the runtime's own thread.
        self._only = None if has_threads else self._callbacks[0]
        # Those that may refuse a subflow.
        self._judges = [policy for policy in policies if type(policy).allows is not Policy.allows]
        self._numbers = itertools.count(1)
        # The thread that takes reports.
        self._leader: threading.Thread | None = None
        # What the watcher has called, and what was opened then: written down once the commands are out.
        self._later: list[tuple[Any, ...]] = []
        self._at_once: dict[str, Callable[..., object]] = {}
        if self._only is not None and self._journal is None and kernel.watcher is not None:
            wanted = {name: method for name, method in _AT_ONCE.items() if self._only.wants(method)}
            self._at_once = {name: getattr(policies[0], method) for name, method in wanted.items()}
        # What opens subflows for its connections, where nobody is asked and nothing is noted first.
        self._opener = None if self._judges or self._journal is not None else kernel.watcher
        self._stopping = False
        # Every attempt of every connection, oldest first.
        self._attempts: dict[Attempt, PolicyConnection] = {}
        self._open_timeout = min(policy.open_timeout for policy in policies)
        now = self.now()
        self._next_tick = {
            callbacks: now + callbacks.policy.tick
            for callbacks in self._callbacks
            if any(callbacks.wants(method) for method in ("on_tick", "on_rto", "on_progress"))
        }
        self._timed = {
            callbacks: Timed(callbacks.policy)
            for callbacks in self._callbacks
            if callbacks.wants("on_rto") or callbacks.wants("on_progress")
        }
        self._handlers: dict[str, Callable[..., object]] = {
            "connection": self._add,
            "established": self._established,
            "closed": self._forget,
            "answered": self._subflow_answered,
            "accepted": self._subflow_accepted,
            "lost": self._subflow_closed,
            "closing": self._subflow_closed,
            "failed": self._subflow_closed,
            # Of what ends with its connection no policy is told.
            "ended": self._take_note_of_closed,
            "ordered": self._order_begins,
            "done": lambda conn, number: self._note_end(conn.token, number, "sent"),
            "refused": self._refused,
            "announced": lambda conn, event: self._tell("on_address_announced", conn, event),
            "removed": lambda conn, event: self._tell("on_address_removed", conn, event),
            "link up": self._link_up,
            "link down": self._link_down,
            "address added": self._address_added,
            "address removed": self._address_removed,
            "overrun": lambda event: self._read_addresses(),
            "other": lambda *unused: None,
            "called": self._called,
        }
        # Of what was called already.
        self._notes: dict[str, Callable[..., object]] = {
            "lost": self._take_note_of_closed,
            "announced": lambda *unused: None,
            "removed": lambda *unused: None,
            "link down": self._take_note_of_removed,
            "address removed": self._take_note_of_removed,
            "opened": self._opened,
            "not opened": self._not_opened,
        }

    def start(self) -> None:
        self.begin()
        for callbacks in self._callbacks:
            callbacks.start()
        self._start_thread()

    def begin(self) -> None:
        """Check that the policies can run here, and take what there is so far. No thread is started."""
        for policy in self._policies:
            policy._runtime = self
        self._read_addresses()
        for policy in self._policies:
            policy._check_place(self)
        self._catch_up()

    def settle(self) -> None:
        """Handle all reports, and make all calls to which they lead, in the caller's thread: for a bench."""
        while self._catch_up() + sum(callbacks.call_queued() for callbacks in self._callbacks):
            pass

    def pass_time(self) -> None:
        """Give up what took too long, and give ticks, as far as they are due now: for a bench."""
        self.write_down()
        now = self.now()
        self._give_up(now)
        self._give_ticks(now)
        self.settle()

    def next_due(self) -> float:
        """Return when pass_time() has something to do next."""
        self.write_down()
        return self._next_due(self.now())

    def stop(self) -> None:
        """End the threads, after a failed start those that it had started. What policies opened stays open."""
        self._stopping = True
        self._kernel.close()
        if self._only is not None:
            self._only.stop(0)
        if not self._wait_for_leader():
            what = self._policies[0] if self._only is not None else "policies"
            LOGGER.error("a callback of %s is still running after the policies were stopped", what)
        for callbacks in self._callbacks:
            if not callbacks.stop(_PATIENCE):
                LOGGER.error("a callback of %s is still running after the policies were stopped", callbacks.policy)
        for policy in self._policies:
            self._end_policy(policy)
        if self._journal is not None:
            self._journal.policies_ended()

    def _wait_for_leader(self) -> bool:
        """Return False if its callback is still running after a while. It may be stuck in a command: that may wait."""
        leader = self._leader
        if leader is None or threading.current_thread() is leader:
            return True
        deadline = time.monotonic() + _PATIENCE
        while leader.is_alive() and not self._kernel.carries_out():
            if time.monotonic() > deadline:
                return False
            leader.join(0.05)
        return True

    def _end_policy(self, policy: Policy) -> None:
        if policy._runtime is not self:
            return
        try:
            policy._ended()
        except Exception:
            LOGGER.exception("%s did not put back what it had changed", policy)
        finally:
            policy._runtime = None

    # For policies, called by their threads

    def addresses(self) -> list[LocalAddress]:
        with self.lock:
            self.write_down()
            return list(self._addresses)

    def opening(self, conn: _connection.Connection) -> list[Opening]:
        if not isinstance(conn, PolicyConnection):
            return []
        with self.lock:
            self.write_down()
            asked_for = conn.attempts + conn.waiting
            return [Opening(*(one.answered or (one.local, one.remote)), one.backup) for one in asked_for]

    def interface_of(self, address: str) -> str | None:
        with self.lock:
            return self._interfaces.get(plain_host(address))

    def now(self) -> float:
        return self._kernel.now()

    def interface_of_route(self, local: str, remote: str) -> str | None:
        return self._kernel.interface_of_route(local, remote)

    def check_subflow_options(self) -> None:
        self._kernel.check_subflow_options()

    def expect_progress(self, policy: Policy, conn: Any, size: float, seconds: float) -> Progress:
        timed = next((one for callbacks, one in self._timed.items() if callbacks.policy is policy), None)
        if timed is None:
            raise TypeError(f"{type(policy).__name__} has no on_progress(), which is called for what it expects")
        progress = Progress(conn, size, seconds, self.now(), conn.subflows())
        with self.lock:
            timed.expect(progress)
        return progress

    def has_interface(self, name: str) -> bool:
        """Return whether the network namespace has an interface of this name, whatever its state."""
        return self._kernel.has_interface(name)

    def known_addresses(self) -> list[LocalAddress]:
        """Return every address of the network namespace, including loopback and interfaces that are down."""
        with self.lock:
            return [LocalAddress(*known) for known in self._interfaces.items()]

    def open(
        self,
        conn: PolicyConnection,
        local: Any,
        remote: Any,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        force: bool,
    ) -> None:
        attempt = self._attempt(conn, local, remote, backup, interface, local_id, force, next(self._numbers))
        if self._journal is not None:
            self._note_opening(conn, attempt)
        try:
            if not self._judges or self._allow(conn, attempt):
                self._send(conn, attempt)
        except BaseException as error:
            if attempt.decision is not None:
                attempt.decision.fails(error)
            if not isinstance(error, SubflowError):
                raise
            self._tell("on_subflow_failed", conn, self._failure(conn, attempt, error.errno))

    # The same by the watcher

    def _opened(self, conn: PolicyConnection, *arguments: Any) -> None:
        # Of a connection that has ended no outcome is told.
        if not conn.is_closed:
            self._begin(conn, self._attempt(conn, *arguments[:-1]))

    def _not_opened(self, conn: PolicyConnection, *arguments: Any) -> None:
        attempt, error = self._attempt(conn, *arguments[:-1]), arguments[-1]
        self._tell("on_subflow_failed", conn, self._failure(conn, attempt, error.errno))

    def when_lost(
        self, conn: PolicyConnection, what: Any, local: Any, remote: Any, backup: bool, interface: str | None
    ) -> None:
        before = None
        if local is None and remote is None and interface is None:
            with self.noted("take order back", conn, lost=_name(what)) as more:
                before = self._kernel.take_back(conn, what)
                more["outcome"] = "there was none" if before is None else "taken back"
        else:
            attempt = self._attempt(conn, local, remote, backup, interface, None, False, next(self._numbers))
            with self.noted("order", conn, lost=_name(what), **_details(attempt)) as more:
                if not self._allow(conn, attempt, more):
                    return
                with self.lock:
                    conn.orders[attempt.number] = attempt
                try:
                    before = self._kernel.when_lost(
                        conn,
                        what,
                        attempt.local if attempt.local[0] else None,
                        attempt.remote,
                        attempt.backup,
                        attempt.interface,
                        attempt.number,
                    )
                except BaseException:
                    before = attempt.number
                    raise
                finally:
                    self._forget_order(conn, before)
                more["outcome"] = "left"
            return
        self._forget_order(conn, before)

    def _forget_order(self, conn: PolicyConnection, number: int | None) -> None:
        if number is not None:
            with self.lock:
                conn.orders.pop(number, None)

    def close_subflow(self, conn: PolicyConnection, subflow: Subflow, force: bool) -> None:
        number = self._change("close_subflow", conn, subflow)
        ends = plain(subflow.local), plain(subflow.remote)
        with self.lock:
            conn.closing.add(ends)
        if self._journal is not None:
            decision = self._journal.decides("close", conn.token, local=ends[0], remote=ends[1])
            self._journal.keep(conn.token, ends, decision)
        self._kernel.close_subflow(conn, subflow, force, number)

    def set_backup(self, conn: PolicyConnection, subflow: Subflow, backup: bool) -> None:
        number = self._change("set_backup", conn, subflow)
        if self._journal is not None:
            local, remote = plain(subflow.local), plain(subflow.remote)
            decision = self._journal.decides("backup", conn.token, local=local, remote=remote, backup=backup)
            self._journal.keep(conn.token, number, decision)
        self._kernel.set_backup(conn, subflow, backup, number)

    # What is decided is noted where somebody reads it.

    def noted(self, decision: str, conn: Any, **details: Any) -> contextlib.AbstractContextManager[dict[str, Any]]:
        """Note what is done in the block, and how it ends."""
        if self._journal is None:
            return contextlib.nullcontext({})
        if "options" in details:
            details["options"] = options_by_name(details["options"])
        return self._journal.decided(decision, conn.token, **details)

    def _note_opening(self, conn: PolicyConnection, attempt: Attempt, because: str | None = None) -> None:
        if self._journal is not None:
            attempt.decision = self._journal.decides("open", conn.token, because=because, **_details(attempt))

    def _note_end(self, token: int, key: Any, outcome: str, error: Exception | None = None) -> None:
        decision = None if self._journal is None else self._journal.take(token, key)
        if decision is not None and error is not None:
            decision.fails(error)
        elif decision is not None:
            decision.ends(outcome)

    def _change(self, method: str, conn: PolicyConnection, subflow: Subflow) -> int:
        number = next(self._numbers)
        with self.lock:
            conn.changing[number] = (method, (plain(subflow.local), plain(subflow.remote)))
            while len(conn.changing) > _CHANGES:
                del conn.changing[next(iter(conn.changing))]
        return number

    def _attempt(
        self,
        conn: PolicyConnection,
        local: Any,
        remote: Any,
        backup: bool,
        interface: str | None,
        local_id: int | None,
        force: bool,
        number: int,
    ) -> Attempt:
        host, port = _split(remote)
        own = conn.ends[1]
        goal = (host or own[0], port or own[1])
        return Attempt(_split(local), goal, backup, interface, local_id, force, number)

    def _allow(self, conn: PolicyConnection, attempt: Attempt, more: dict[str, Any] | None = None) -> bool:
        """Return whether every policy allows a subflow. Raises SubflowError where there is no route."""
        host, interface = attempt.local[0], attempt.interface
        # What a policy allows is an address: without one it is that of the route.
        host = host or conn._native.local_address(attempt.remote, interface)
        origin = LocalAddress(host, interface or self.interface_of(host) or "")
        refusing = next((one for one in self._judges if not one.allows(conn, origin, attempt.remote)), None)
        if refusing is None:
            return True
        outcome = f"not allowed by {type(refusing).__name__}"
        if attempt.decision is not None:
            attempt.decision.ends(outcome)
        if more is not None:
            more["outcome"] = outcome
        return False

    def _send(self, conn: PolicyConnection, attempt: Attempt) -> None:
        """SUBFLOW_CREATE, later. Raises SubflowError for what is refused before that."""
        self._begin(conn, attempt)
        try:
            self._kernel.open(
                conn,
                attempt.local if attempt.local[0] else None,
                attempt.remote,
                attempt.backup,
                attempt.interface,
                attempt.local_id,
                attempt.force,
                attempt.number,
            )
        except BaseException:
            self._end(conn, attempt)
            raise

    def _begin(self, conn: PolicyConnection, attempt: Attempt) -> None:
        attempt.since = self.now()
        attempt.due = attempt.since + self._open_timeout
        with self.lock:
            conn.attempts.append(attempt)
            self._attempts[attempt] = conn

    def _end(self, conn: PolicyConnection, attempt: Attempt) -> bool:
        """Return False if it has ended already."""
        with self.lock:
            if self._attempts.pop(attempt, None) is None:
                return False
            conn.attempts.remove(attempt)
            return True

    def look_up(self, asked: Iterable[tuple[PolicyConnection, Any, Any]]) -> list[Any]:
        found = self._kernel.subflows_at([(conn._native, conn, local, remote) for conn, local, remote in asked])
        return [None if subflow is None else subflow._unmapped() for subflow in found]

    def holder(self, conn: PolicyConnection) -> int | None:
        inode = conn.inode
        with self.lock:
            if inode not in self._holders:
                # One walk answers for all there are, for those too whose holder may not be looked at.
                found = self._kernel.holders()
                there = {inode, *(one.inode for one in self._connections.values())}
                self._holders = {one: found.get(one) for one in there}
            return self._holders[inode]

    def program(self, conn: PolicyConnection) -> str | None:
        return self._kernel.program(self.holder(conn))

    # The threads

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, name="mptcp-policies", daemon=True).start()

    def _work(self) -> None:
        """Take reports when it is this thread's turn, while another one stands by: commands may get stuck."""
        while self._kernel.stand_by():
            self._leader = threading.current_thread()
            try:
                self._start_thread()
            except RuntimeError as error:
                LOGGER.warning("a connection whose lock is held will delay the policies of others: %s", error)
            self._lead()

    def _lead(self) -> None:
        # Little is done from an event to what a policy does about it: after a pause nothing of it is in caches.
        kernel, connections, handlers, only = self._kernel, self._connections, self._handlers, self._only
        at_once, later = self._at_once, self._later
        due = now = self.now()
        # Another thread may have left some.
        has_ticks = only is not None
        while not self._stopping:
            try:
                timeout = 0.0 if has_ticks or due <= now else due - now
                report = kernel.report(timeout, connections, at_once, later)
                if later:
                    self.write_down()
                if report is not None:
                    if report[0] == "relieved":
                        return
                    handlers[report[0]](*report[1:])
                    if report[0] == "called" and report[-1]:
                        return
                if only is not None:
                    # What a policy is told of comes before the ticks that are left.
                    has_ticks = only.call()
                now = kernel.now()
                if now >= due:
                    self.write_down()
                    self._give_up(now)
                    self._give_ticks(now)
                    has_ticks = only is not None
                    due = self._next_due(now)
            except Exception:
                if self._stopping:
                    return
                LOGGER.exception("the policies continue after an error of the runtime")

    def _next_due(self, now: float) -> float:
        with self.lock:
            due = next((attempt.due for attempt in self._attempts if attempt.due < math.inf), math.inf)
        # One that begins later is late later than now.
        return min([*self._next_tick.values(), due, now + self._open_timeout])

    def _catch_up(self) -> int:
        """Handle what there is to report so far; return how much that was."""
        count = 0
        while (report := self._kernel.report(0, self._connections, {}, self._later)) is not None:
            self.write_down()
            self._handlers[report[0]](*report[1:])
            count += 1
        self.write_down()
        return count

    def write_down(self) -> None:
        """Write down what was put off: before anybody reads what is known, and before the next report."""
        with self.lock:
            while self._later:
                notes = self._later[:]
                del self._later[: len(notes)]
                for name, *arguments in notes:
                    self._notes[name](*arguments)

    def _called(self, method: Any, arguments: tuple[Any, ...], error: Exception | None, is_relieved: bool) -> None:
        """The watcher has called a method of the only policy."""
        if error is not None and self._only is not None:
            self._only.failed(method.__name__, arguments, error)

    def _tell(self, method: str, *arguments: Any) -> None:
        for callbacks in self._callbacks:
            callbacks.put(method, *arguments)

    # Connections

    def _established(self, conn: PolicyConnection) -> None:
        with self.lock:
            conn.established = self.now()
            waiting, conn.waiting = conn.waiting, []
        for attempt in waiting:
            self._send_again(conn, attempt)

    def _send_again(self, conn: PolicyConnection, attempt: Attempt) -> None:
        try:
            self._send(conn, attempt)
        except SubflowError as error:
            if attempt.decision is not None:
                attempt.decision.fails(error)
            self._tell("on_subflow_failed", conn, self._failure(conn, attempt, error.errno))
        except OSError:
            if not self._has_ended(conn):
                raise

    def _add(self, native: _core.ByToken, known: Iterable[Ends]) -> None:
        if self._uid is not None and native.uid != self._uid:
            return
        if self._opener is None:
            conn = PolicyConnection(native, self)
        else:
            conn = DirectConnection(native, self, self._opener, self._later)
        conn.known.update(known)
        with self.lock:
            self._connections[conn.token] = conn
        self._tell("on_connection", conn)

    def _forget(self, conn: PolicyConnection) -> None:
        with self.lock:
            self._connections.pop(conn.token, None)
            self._holders.pop(conn.inode, None)
            for attempt in list(conn.attempts):
                self._end(conn, attempt)
            conn.is_closed = True
        if self._journal is not None:
            self._journal.connection_ended(conn.token)
        self._tell("on_closed", conn)

    def _has_ended(self, conn: PolicyConnection) -> bool:
        return conn._native.state_now() is None

    # Commands

    def _order_begins(self, conn: PolicyConnection, number: int) -> None:
        """A standing order is being carried out."""
        with self.lock:
            attempt = conn.orders.pop(number, None)
            if attempt is not None:
                self._note_opening(conn, attempt, "standing order")
                self._begin(conn, attempt)

    def _refused(self, conn: PolicyConnection, number: int, error: Exception) -> None:
        """A command failed at once."""
        with self.lock:
            attempt = next((one for one in conn.attempts if one.number == number), None)
            method, ends = conn.changing.pop(number, ("open_subflow", None))
            if ends is not None and method == "close_subflow":
                conn.closing.discard(ends)
        if attempt is None:
            self._note_end(conn.token, ends if method == "close_subflow" else number, "failed", error)
            # Of a subflow that is closed already there was nothing to do.
            is_gone = isinstance(error, SubflowError) and error.errno == errno.ENOTCONN
            if is_gone:
                self._look_again(conn, ends)
            if ends is not None and not is_gone and not self._has_ended(conn):
                LOGGER.error("%s() failed", method, exc_info=error)
            return
        self._end(conn, attempt)
        if is_not_fully_established(error) and conn._native.state_now() not in _SHUT_DOWN:
            with self.lock:
                is_now = conn.established > attempt.since
                if not is_now:
                    conn.waiting.append(attempt)
            if is_now:
                self._send_again(conn, attempt)
            return
        if attempt.decision is not None:
            attempt.decision.fails(error)
        if isinstance(error, (SubflowError, UnsupportedError)):
            self._tell("on_subflow_failed", conn, self._failure(conn, attempt, error.errno))
        elif not self._has_ended(conn):
            LOGGER.error("open_subflow() failed", exc_info=error)

    def _look_again(self, conn: PolicyConnection, ends: Ends | None) -> None:
        """A subflow was gone before it could be closed. Its event is on its way, or it was lost."""
        with self.lock:
            for attempt in conn.attempts:
                if attempt.timed_out and attempt.closed == ends:
                    attempt.due, attempt.closed = self.now() + _GRACE, None

    # Subflows

    def _subflow_answered(self, conn: PolicyConnection, event: Event) -> None:
        if event.local is None or event.remote is None:
            return
        ends = (event.local, event.remote)
        with self.lock:
            attempt = next((one for one in conn.attempts if one.answered is None and one.matches(*ends)), None)
            if attempt is None:  # requested by another process
                attempt = Attempt(event.local, event.remote, bool(event.backup))
                self._begin(conn, attempt)
            attempt.answered = ends

    def _subflow_accepted(self, conn: PolicyConnection, subflow: Subflow) -> None:
        ends = (subflow.local, subflow.remote)
        with self.lock:
            conn.known.add(ends)
            ended = [one for one in conn.attempts if one.answered == ends]
            for attempt in ended:
                self._end(conn, attempt)
        for decision in [one.decision for one in ended if one.decision is not None]:
            decision.ends("established", local=ends[0], remote=ends[1])
        self._tell("on_subflow_established", conn, subflow)

    def _subflow_closed(self, conn: PolicyConnection, event: Event) -> None:
        closed, attempt = self._take_note_of_closed(conn, event)
        if not closed:
            return
        if attempt is None:
            self._tell("on_subflow_lost", conn, event)
        elif attempt.timed_out:
            self._tell("on_subflow_failed", conn, self._failure(conn, attempt, errno.ETIMEDOUT))
        else:
            # After a reset the event may have lost the remote port.
            self._tell("on_subflow_failed", conn, Event(**{**event.asdict(), "remote": attempt.remote}))

    def _take_note_of_closed(self, conn: PolicyConnection, event: Event) -> tuple[bool, Attempt | None]:
        """Return whether a subflow was closed that no policy closed, and the attempt if it had not been accepted."""
        local, remote = event.local, event.remote
        if local is None or remote is None:
            return False, None
        ends = (local, remote)
        with self.lock:
            attempt = None
            was_known = ends in conn.known
            if was_known:
                conn.known.remove(ends)
            else:
                attempt = next((one for one in conn.attempts if one.matches(local, remote)), None)
                if attempt is not None:
                    self._end(conn, attempt)
            asked_for = ends in conn.closing
            if asked_for:
                conn.closing.remove(ends)
        if asked_for:
            self._note_end(conn.token, ends, "closed")
        if attempt is not None and attempt.decision is not None:
            if attempt.timed_out:
                attempt.decision.ends("failed", errno.ETIMEDOUT)
            else:
                attempt.decision.fails_by(event)
        return not asked_for and (was_known or attempt is not None), attempt

    def _give_up(self, now: float) -> None:
        """Close what the peer has not accepted in time. The event of the closing ends the attempt."""
        late: dict[PolicyConnection, list[Attempt]] = {}
        with self.lock:
            for attempt, conn in self._attempts.items():
                if attempt.due == math.inf:
                    continue
                if now < attempt.due:
                    break
                attempt.timed_out, attempt.due = True, math.inf
                late.setdefault(conn, []).append(attempt)
        if not late:
            return
        read = self._read(list(late))
        for (conn, attempts), subflows in zip(late.items(), read, strict=True):
            with self.lock:
                # Others are on their way out: the commands that close them are carried out later.
                taken = conn.known | {one.closed for one in conn.attempts}
            left = [one for one in subflows if (one.local, one.remote) not in taken]
            for attempt in attempts:
                subflow = next((one for one in left if attempt.matches(one.local, one.remote)), None)
                if subflow is not None:
                    left.remove(subflow)
                    attempt.closed = (subflow.local, subflow.remote)
                    # One that is gone meanwhile is not an error.
                    self._kernel.close_subflow(conn, subflow, False, self._change("close_subflow", conn, subflow))
                elif self._end(conn, attempt):
                    if attempt.decision is not None:
                        attempt.decision.ends("failed", errno.ETIMEDOUT)
                    self._tell("on_subflow_failed", conn, self._failure(conn, attempt, errno.ETIMEDOUT))

    def _read(self, connections: Sequence[_connection.Connection]) -> list[list[Any]]:
        read = self._kernel.subflows_of(connections)
        return [[subflow._unmapped() for subflow in subflows or ()] for subflows in read]

    def _failure(self, conn: PolicyConnection, attempt: Attempt, error: int | None) -> Event:
        """Return an event for what no event reported. An unknown end is None."""
        local, remote = attempt.answered or (attempt.local, attempt.remote)
        return Event(
            EventKind.SUB_CLOSED,
            int(self.now() * 1e9),
            token=conn.token,
            local=local if local[0] else None,
            remote=remote,
            error=error,
        )

    # Addresses

    def _link_up(self, event: Event) -> None:
        self._read_addresses()
        self._tell("on_link_up", event)

    def _link_down(self, event: Event) -> None:
        self._take_note_of_removed(event)
        self._tell("on_link_down", event)

    def _address_added(self, event: Event) -> None:
        self._read_addresses()
        self._tell("on_address", event)

    def _address_removed(self, event: Event) -> None:
        self._take_note_of_removed(event)
        self._tell("on_address", event)

    def _take_note_of_removed(self, event: Event) -> None:
        # Not read again: listing what is left would take longer than everything else.
        address = None if event.local is None else event.local[0]
        self._addresses = [
            one for one in self._addresses if one.interface != event.interface or address not in (None, one.address)
        ]

    def _read_addresses(self) -> None:
        links = self._kernel.links()
        up = {event.interface for event in links if event.kind == EventKind.LINK_UP}
        found = [
            LocalAddress(event.local[0], event.interface)
            for event in links
            if event.kind == EventKind.ADDRESS_ADDED and event.local is not None and event.interface is not None
        ]
        with self.lock:
            self._interfaces.update(found)
            self._addresses = [one for one in found if one.interface in up and _is_of_a_network(one.address)]

    def _give_ticks(self, now: float) -> None:
        due = [callbacks for callbacks, at in self._next_tick.items() if now >= at]
        if not due:
            return
        connections = self.connections()
        read = self._kernel.subflows_of(connections)
        both = zip(connections, read, strict=True)
        rounds = [(conn, conn.accepted(list(subflows))) for conn, subflows in both if subflows is not None]
        for callbacks in due:
            if callbacks.wants("on_tick"):
                callbacks.put_ticks(rounds)
            if callbacks in self._timed:
                with self.lock:
                    calls = self._timed[callbacks].calls(now, rounds)
                for call in calls:
                    callbacks.put(*call)
            self._next_tick[callbacks] = now + callbacks.policy.tick


def _split(end: Any) -> tuple[str, int]:
    """Return the host and the port of an argument of open_subflow(), "" and 0 for what it does not give."""
    if end is None:
        return "", 0
    if isinstance(end, str):
        return plain_host(end), 0
    return plain(end)[:2]


def _details(attempt: Attempt) -> dict[str, Any]:
    """What is noted of a subflow that is to be opened."""
    how = {"backup": attempt.backup, "interface": attempt.interface}
    return {"local": attempt.local if attempt.local[0] else None, "remote": attempt.remote, **how}


def _name(what: Any) -> str:
    """What an order waits for, in words."""
    if isinstance(what, Subflow):
        return f"{endpoint(plain(what.local))} -> {endpoint(plain(what.remote))}"
    return str(what)


def _is_of_a_network(address: str) -> bool:
    """Return whether the address is neither a loopback nor a link-local one."""
    ip = ipaddress.ip_address(address)
    return not (ip.is_loopback or ip.is_link_local)
