"""What is done to a connection, and to the process, while it transfers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import mptcp
import pytest
from mptcp.lab import Host, Link
from support import PORT, Pictured, descriptors_left, eventually, has_joined, true_picture
from transfer import FAMILIES, Asked, Server, Transfer, abort

# What an operation may end in while another closes subflows, cuts links or ends processes, by class and errno.
EXPECTED = {
    # The subflow or its connection is gone, or on its way out.
    errno.ESRCH, errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE,
    # A link is down: no address, no route, no answer.
    errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ETIMEDOUT,
    # The last subflow is not closed without being forced.
    errno.EBUSY,
}  # fmt: skip

MOST_SUBFLOWS = 6
DEADLINE = 30.0

# Seconds that a transfer may stand still before there is a new subflow for it.
PATIENCE = 2.0


class Faults:
    """One lab's connection under faults. ``sock`` is the client's end, while there is one."""

    def __init__(self, client: Host, server: Host, paths: tuple[Link, Link], service: Server) -> None:
        self.client, self.server, self.paths = client, server, paths
        self.sock: mptcp.Socket | None = None
        self.done: Counter[str] = Counter()
        self.lately: deque[str] = deque(maxlen=10)
        self.errors: Counter[str] = Counter()
        self._service = service
        self._stack = contextlib.ExitStack()
        self._picture = Pictured()
        self._policy: subprocess.Popen[bytes] | None = None
        self._policy_errors: IO[bytes] = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._actions: dict[Callable[[mptcp.Socket, random.Random], None], int] = {
            self.open_subflow: 30, self.close_subflow: 20, self.change_backup: 10, self.flap: 12, self.announce: 5,
            self.read: 10, self.record: 5, self.policy: 4, self.overrun: 3, self.without_descriptors: 12,
            self.without_memory: 1, self.abort: 6, self.half_close: 5, self.fork: 6,
        }  # fmt: skip

    def __enter__(self) -> Faults:
        self._events = self._stack.enter_context(self.client.events())
        self._stack.callback(self._end_policy, signal.SIGTERM)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def overruns(self) -> int:
        return self._picture.overruns

    def policy_errors(self) -> str:
        """What the policies wrote: they have nothing to complain of."""
        self._policy_errors.seek(0)
        return self._policy_errors.read().decode()

    def act(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        """Does one thing, and counts it and how it went."""
        [action] = numbers.choices(list(self._actions), list(self._actions.values()))
        name = action.__name__.replace("_", " ")
        self.done[name] += 1
        self.lately.append(name)
        with self._counting(name):
            action(sock, numbers)

    @contextlib.contextmanager
    def _counting(self, name: str, *more: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in EXPECTED.union(more):
                raise
            self.errors[f"{name}: {type(error).__name__} {errno.errorcode[error.errno]}"] += 1

    # Subflows

    def open_subflow(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        subflows = sock.subflows()
        if len(subflows) >= MOST_SUBFLOWS:
            sock.close_subflow(numbers.choice(subflows), force=True)
        path, timeout = numbers.choice(self.paths), numbers.choice((5.0, 5.0, 0.001, 0))
        local, remote = (path.address(host, family=sock.family) for host in (self.client, self.server))
        # A full one, with data behind its third ACK, meets a bug of the kernel: docs/kernel-bugs.md.
        subflow = sock.open_subflow(local, (remote, PORT), backup=True, timeout=timeout)
        if subflow is not None and numbers.random() < 0.7:
            self._set_backup(sock, subflow, False)

    def close_subflow(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        subflow = numbers.choice(sock.subflows() or [None])
        if subflow is None:
            return
        if numbers.random() < 0.5:
            subflow.close()
        else:
            for connection in self.client.connections(token=sock.token):
                for one in connection.subflows():
                    if one.local == subflow.local:
                        connection.close_subflow(one)

    def change_backup(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        for subflow in sock.subflows():
            if subflow.state == "ESTABLISHED":
                self._set_backup(sock, subflow, numbers.random() < 0.3)

    def _set_backup(self, sock: mptcp.Socket, subflow: mptcp.Subflow, backup: bool) -> None:
        # Before the server is through with the join no data may follow: see open_subflow().
        if not backup and not eventually(lambda: self._has_joined(sock, subflow), 1.0):
            return
        # EINVAL is what the kernel says of a subflow that is gone.
        with self._counting("change backup", errno.EINVAL):
            subflow.set_backup(backup)

    def _has_joined(self, sock: mptcp.Socket, subflow: mptcp.Subflow) -> bool:
        """Whether the server's connection has the subflow in its list."""
        for peer in self._service.served:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if (peer.family, peer.getpeername()[1]) == (sock.family, sock.getsockname()[1]):
                    return has_joined(peer, subflow)
        return False

    def announce(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        path = numbers.choice(self.paths)
        # EADDRINUSE: a subflow has the connection's own port there.
        with self._counting("announce", errno.EADDRINUSE):
            sock.remove_address(sock.announce_address(path.address(self.client, family=sock.family)))

    def there(self) -> str:
        """The connections of both hosts, for a message."""
        served = [f"served: {sock}, Multipath TCP: {sock.is_mptcp}" for sock in self._service.served]
        ss = ["ss", "-tanMiOH"]
        rows = [host.run(ss, capture_output=True, text=True).stdout for host in (self.client, self.server)]
        return "\n".join([*served, "client", rows[0], "server", rows[1]])

    # Ends of other connections

    def abort(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        """Has one end of a connection abort it, which whoever follows it at the client is told."""
        way = numbers.choice((Asked.ABORT, Asked.CLOSE_WITH_UNREAD_DATA, None))
        with self._connection() as other, other.events() as events:
            self._begin(other, numbers)
            token = other.token
            if way is None:
                if numbers.random() < 0.5:
                    # What arrives is not read.
                    Transfer(False, 1 << 16, 0).ask(other)
                    eventually(lambda: bool(other.recv(1, socket.MSG_PEEK)), DEADLINE)
                    other.close()
                else:
                    abort(other)
            else:
                way.ask(other)
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    other.sendall(b"unread")
                    assert not other.recv(1), "the server sent something"
            last = None
            while (event := events.get(DEADLINE)) is not None:
                last = event.kind
            assert last == mptcp.EventKind.CLOSED, f"{way}: the events of an aborted connection end with {last}"
            if way is not None:
                assert other.subflows() == []
                self._refuses_subflows(other, "ended")
        assert eventually(lambda: not self.client.connections(token=token), DEADLINE)

    def half_close(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        """Shuts sending down at one end. Data passes the other way, and no further subflow is opened."""
        with self._connection() as other:
            self._begin(other, numbers)
            if numbers.random() < 0.5:
                Asked.SHUT_DOWN_SENDING.ask(other)
                assert not other.recv(1), "the server sent something"
                self._refuses_subflows(other, "the peer has shut down")
                other.sendall(bytes(1 << 16))
            else:
                Asked.ANSWER_AFTER_THE_END.ask(other)
                other.shutdown(socket.SHUT_WR)
                self._refuses_subflows(other, "shut down|ended")
                assert other.recv(2) == b"x"

    def _begin(self, other: mptcp.Socket, numbers: random.Random) -> None:
        """Has both ends of a new connection know it, perhaps over two subflows."""
        Transfer(True, 1, 0).run(other)
        if numbers.random() < 0.5:
            with self._counting("open subflow"):
                self.open_subflow(other, numbers)

    def _refuses_subflows(self, other: mptcp.Socket, why: str) -> None:
        begin = time.monotonic()
        local = self.paths[1].address(self.client, family=other.family)
        with pytest.raises(OSError, match=why) as refused:
            other.open_subflow(local, backup=True, timeout=DEADLINE)
        assert refused.value.errno == errno.ENOTCONN
        assert time.monotonic() - begin < DEADLINE / 2, refused.value

    # Links

    def flap(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        path = numbers.choice(self.paths)
        path.down()
        try:
            if numbers.random() < 0.3:
                with self._counting("open subflow on a link that is down"):
                    local, remote = (path.address(host, family=sock.family) for host in (self.client, self.server))
                    sock.open_subflow(local, (remote, PORT), backup=True, timeout=0.05)
        finally:
            path.up()

    # Reading

    def read(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        assert sock.info().token == sock.token
        for host in (self.client, self.server):
            for connection in host.connections():
                with self._counting("read"):
                    connection.subflows()
                    connection.info()
            host.counters()

    def record(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        with mptcp.Recorder(numbers.choice((None, sock)), interval=0.001) as recorder, self._counting("record"):
            sock.info()
        assert recorder.metadata["failure"] is None, recorder.metadata["failure"]

    # Processes

    def policy(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        """Ends the policies of the client, by a signal that they can take notice of or not, and starts them anew."""
        self._end_policy(numbers.choice((signal.SIGKILL, signal.SIGTERM)))
        command = [sys.executable, "-m", "mptcp", "policy", str(Path(__file__).with_name("mesh.py"))]
        self._policy = self.client.popen(command, stdout=subprocess.DEVNULL, stderr=self._policy_errors)

    def _end_policy(self, number: int) -> None:
        if self._policy is not None:
            self._policy.send_signal(number)
            self._policy.wait(DEADLINE)
            self._policy = None

    def fork(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        """Forks while threads are at work. The child does as its parent does, and waits for none of them."""
        path = numbers.choice(self.paths)
        with warnings.catch_warnings():
            # Since Python 3.12 for any process with threads.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(round(DEADLINE))
                self._in_child(sock, path)
                status = 0
            except OSError as error:
                if error.errno in EXPECTED:
                    status = error.errno
                else:
                    traceback.print_exc()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status != -signal.SIGALRM, "a forked child waited for ever"
        assert status in (0, *EXPECTED), f"a forked child ended with {status}"
        if status:
            self.errors[f"fork: {errno.errorcode[status]}"] += 1

    def _in_child(self, sock: mptcp.Socket, path: Link) -> None:
        assert sock.info().token == sock.token
        local, remote = (path.address(host, family=sock.family) for host in (self.client, self.server))
        with sock.events() as events:
            opened = sock.open_subflow(local, (remote, PORT), backup=True, timeout=5.0)
            events.get(0)
            assert opened is not None
            if opened in sock.subflows():
                sock.close_subflow(opened)

    # Shortage

    def overrun(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        """Leaves the events room for two, has more come, and looks whether whoever follows them knows what there is."""
        self._events._native.set_receive_buffer(1)
        try:
            for _ in range(30):
                self._use(self._connection())
        finally:
            self._events._native.set_receive_buffer(4 << 20)
        self.check_picture()

    def _connection(self) -> mptcp.Socket:
        return self.client.create_connection((self.paths[0].address(self.server), PORT), timeout=DEADLINE)

    def _use(self, sock: mptcp.Socket) -> None:
        """Closes a connection that a byte has gone over: without, the server may never hear of its end."""
        with sock:
            Transfer(True, 1, 0).run(sock)

    def check_picture(self) -> None:
        def is_true() -> bool:
            for event in iter(lambda: self._events.get(0), None):
                self._picture.take(event)
            told = {token: subflows for token, subflows in self._picture.connections.items() if subflows}
            with contextlib.suppress(OSError):  # a connection that ended between two calls
                return told == {token: subflows for token, subflows in true_picture(self.client).items() if subflows}
            return False

        assert eventually(is_true, DEADLINE), f"{self._picture.connections} is told, {true_picture(self.client)} is"

    def without_descriptors(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        connected: list[mptcp.Socket] = []

        def connect() -> None:
            connected.append(self._connection())

        def listen() -> None:
            self.client.create_server(("", PORT + 1)).close()

        def watch() -> None:
            with self.client.events() as everything, sock.events():
                everything.get(0)

        def record() -> None:
            mptcp.Recorder(sock).close()

        def duplicate() -> None:
            with mptcp.wrap(sock) as same, same.dup():
                pass

        call = numbers.choice((
            connect, listen, watch, record, duplicate, self.client.connections, self.client.counters, sock.info,
            sock.subflows, lambda: self.open_subflow(sock, numbers), lambda: self.announce(sock, numbers),
            lambda: self.flap(sock, numbers), lambda: mptcp.connections(pid=os.getpid()),
        ))  # fmt: skip
        self._service.has_descriptors.clear()
        try:
            with self._counting("without descriptors", errno.EMFILE), descriptors_left(numbers.randrange(12)):
                call()
        finally:
            self._service.has_descriptors.set()
        for short in connected:
            self._use(short)

    def without_memory(self, sock: mptcp.Socket, numbers: random.Random) -> None:
        program = [sys.executable, str(Path(__file__).with_name("short_of_memory.py")), str(numbers.random())]
        run = self.client.run(program, capture_output=True, text=True, timeout=DEADLINE * 6)
        if "cannot allocate memory for thread-local data" in run.stderr:
            # What glibc does in any program where a new thread finds no memory to begin with.
            self.errors["without memory: ended by glibc in a new thread"] += 1
            return
        assert run.returncode == 0, f"short_of_memory.py ended with {run.returncode}: {run.stderr}"
        for outcome, count in json.loads(run.stdout).items():
            self.errors[f"without memory: {outcome}"] += count

    # The connection

    def connect(self, numbers: random.Random) -> None:
        self.disconnect()
        family, path = numbers.choice(FAMILIES), numbers.choice(self.paths)
        self.sock = self.client.create_connection((path.address(self.server, family=family), PORT), timeout=DEADLINE)
        # What stands still is the transfers' to tell.
        self.sock.settimeout(None)
        # A connection whose last subflow is closed before the server has accepted it is gone there for good.
        with self.transferring(Transfer(True, 1, 0)):
            pass

    def disconnect(self) -> None:
        """Closes the connection, which has a subflow that works: without one the server never hears of it."""
        if self.sock is not None:
            with self.transferring(Transfer(True, 1, 0)):
                pass
            self._close()

    def _close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    @contextlib.contextmanager
    def transferring(self, transfer: Transfer) -> Iterator[mptcp.Socket]:
        """Transfers beside the block, and goes on until all has arrived. Raises what went wrong in either."""
        sock = self.sock
        assert sock is not None
        failures: list[Exception] = []

        def transport() -> None:
            try:
                transfer.run(sock)
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=transport, daemon=True)
        thread.start()
        try:
            yield sock
        except Exception as error:
            failures.append(error)
        deadline = time.monotonic() + 3 * DEADLINE
        thread.join(PATIENCE)
        while thread.is_alive() and time.monotonic() < deadline:
            self.mend(sock)
            thread.join(PATIENCE)
        if thread.is_alive():
            failures.append(TimeoutError(f"{transfer} did not end, over {sock.subflows()} of {sock.info()}"))
        if failures:
            self._close()
            raise ExceptionGroup(f"{transfer}", failures)

    def mend(self, sock: mptcp.Socket) -> None:
        """Opens a subflow to go on with: the others may be gone, or wait to send again what was lost on a link."""
        path = self.paths[self.done["mend"] % 2]
        local, remote = (path.address(host, family=sock.family) for host in (self.client, self.server))
        self.done["mend"] += 1
        with self._counting("mend"):
            subflows = sock.subflows()
            if len(subflows) >= MOST_SUBFLOWS:
                subflows[0].close()
            sock.open_subflow(local, (remote, PORT), backup=True, timeout=5.0)
