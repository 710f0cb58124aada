"""Abilities, their findings, and what probes share."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mptcp import _socket
from mptcp._socket import Socket
from mptcp.lab import Lab, Link

DEADLINE = 10.0
"""Seconds after which a probe that waits has failed."""
CHILD_DEADLINE = 60.0
"""The same for a probe in a new process, which a busy or emulated machine takes long to start."""


@dataclass(frozen=True)
class Ability:
    """Something that depends on the kernel and the caller's privileges."""

    name: str
    """Its name for programs."""
    what: str
    """A description of less than a line."""
    probe: Callable[[Ground], str | None]
    """Uses it, and returns what is to be said of it. Raises Lack, or an OSError whose text says what is missing."""


@dataclass(frozen=True)
class Finding:
    """The result of a probe."""

    name: str
    what: str
    available: bool | None
    """Whether the ability is there; None if it could not be tried."""
    advice: str
    """What is missing and how to get it; of a broker, what it allows this user; otherwise empty."""


class Lack(Exception):
    """What is missing, and how to get it."""


class UntriedError(Exception):
    """Why an ability could not be tried."""


class Ground:
    """What probes share: a connection over loopback and a lab, created on first use, and the findings so far."""

    def __init__(self, abilities: Mapping[str, Ability]) -> None:
        self._abilities = abilities
        self.found: dict[str, Finding] = {}
        self._stack = contextlib.ExitStack()
        self._connection: Socket | None = None
        self._link: Link | OSError | None = None

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def has(self, *names: str) -> bool:
        return all(self.find(name).available for name in names)

    def find(self, name: str) -> Finding:
        """Return the finding of an ability, which is tried once."""
        if name not in self.found:
            self.found[name] = self._try(self._abilities[name])
        return self.found[name]

    def _try(self, ability: Ability) -> Finding:
        available: bool | None = False
        advice = ""
        try:
            advice = ability.probe(self) or ""
            available = True
        except UntriedError as error:
            available, advice = None, f"not tried: {error}"
        except Lack as error:
            advice = str(error)
        except OSError as error:
            advice = error.strerror or str(error)
        return Finding(ability.name, ability.what, available, advice)

    def connection(self) -> Socket:
        """Return a fully established connection over loopback in the caller's network namespace."""
        if self._connection is None:
            enter = self._stack.enter_context
            try:
                listener = enter(_socket.create_server(("127.0.0.1", 0)))
                sock = enter(_socket.create_connection(listener.getsockname(), DEADLINE))
            except OSError as error:
                if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
                    raise Lack("the loopback interface is down: ip link set lo up") from error
                raise
            listener.settimeout(DEADLINE)
            peer = enter(listener.accept()[0])
            exchange(sock, peer)
            self._connection = sock
        return self._connection

    def multipath_connection(self) -> Socket:
        if not self.has("multipath"):
            raise UntriedError("needs Multipath TCP")
        return self.connection()

    def link(self) -> Link:
        """Return a link without limits between two hosts of a lab. Raises the same OSError each time if it failed."""
        if self._link is None:
            try:
                lab = self._stack.enter_context(Lab())
                self._link = lab.link(lab.host("client"), lab.host("server"))
            except OSError as error:
                self._link = error
        if isinstance(self._link, OSError):
            raise self._link
        return self._link

    def needed_link(self) -> Link:
        """Do the same for what cannot be tried without a lab."""
        if not self.has("lab"):
            raise UntriedError("needs a lab")
        return self.link()


@contextlib.contextmanager
def absent(advice: str, *numbers: int) -> Iterator[None]:
    """Turn errors that mean that the kernel lacks something into advice."""
    try:
        yield
    except OSError as error:
        if error.errno in (numbers or (errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENOSYS)):
            raise Lack(advice) from error
        raise


@contextlib.contextmanager
def connected(link: Link) -> Iterator[tuple[Socket, Socket]]:
    """Yield both ends of a fully established connection over a link."""
    client, server = link.hosts
    with (
        server.create_server((link.address(server), 0)) as listener,
        client.create_connection(listener.getsockname(), DEADLINE) as sock,
    ):
        listener.settimeout(DEADLINE)
        peer, _ = listener.accept()
        with peer:
            exchange(sock, peer)
            yield sock, peer


def exchange(sock: Socket, peer: Socket) -> None:
    """Send a byte in each direction, after which both ends are fully established."""
    peer.settimeout(DEADLINE)
    for sender, receiver in ((sock, peer), (peer, sock)):
        sender.sendall(b"x")
        receiver.recv(1)


def in_child(name: str) -> None:
    """Run a function of _child in a new process, because it cannot be undone, and raise the OSError that it caused."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-P", "-m", "mptcp._abilities._child", name]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=CHILD_DEADLINE
    )
    if done.returncode:
        number, _, text = done.stdout.partition(" ")
        if not number:
            raise RuntimeError(f"the probe of {name} failed:\n{done.stderr}")
        raise OSError(int(number), text.strip())
