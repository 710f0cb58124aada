"""The in-kernel path manager of a network namespace: its endpoints, its limits and the packet scheduler."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from . import _core, _interrupts
from ._docs import document
from ._tables import table

_FLAGS = _core.ENDPOINT_FLAGS
_IN_ORDER = sorted(_FLAGS, key=_FLAGS.__getitem__)


@dataclasses.dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of the in-kernel path manager, as the kernel lists it. See add_endpoint() for what the flags do."""

    address: str
    id: int
    port: int | None = None
    interface: str | None = None
    subflow: bool = False
    signal: bool = False
    backup: bool = False
    fullmesh: bool = False
    laminar: bool = False
    implicit: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """The names of the flags that are set, as ``ip mptcp endpoint`` prints them."""
        return tuple(name for name in _IN_ORDER if getattr(self, name))


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the in-kernel path manager, for each connection of the namespace."""

    subflows: int
    add_addr_accepted: int


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """A local address of one connection, as the kernel keeps it: see Socket.addresses()."""

    address: str
    id: int
    port: int | None = None
    flags: tuple[str, ...] = ()


document(
    Endpoint,
    address="The IPv4 or IPv6 address, without an interface.",
    id="The address id, from 1 to 255, by which the kernel finds the endpoint and the peer hears of the address.",
    port="The port that is announced with the address, at which the kernel listens, or None.",
    interface='The interface that its subflows are bound to, or None; "if" and the index for one that is gone.',
    subflow="Whether connections that were opened here open a subflow from the address.",
    signal="Whether the address is announced to the peer.",
    backup="Whether subflows from the address are backups.",
    fullmesh="Whether subflows are opened from the address to every address of the peer. Linux 5.15.",
    laminar="Whether subflows to addresses that the peer announces are opened from the address. Linux 6.18.",
    implicit="Whether the kernel made it by itself, for an address that a connection used. Linux 5.18.",
)
document(
    Limits,
    subflows="How many subflows a connection may have beside the initial one, those that the peer opens included.",
    add_addr_accepted="To how many addresses that the peer announces (ADD_ADDR) subflows are opened.",
)


document(
    Address,
    address="The IPv4 or IPv6 address.",
    id="The address id, from 0 to 255, by which the peer knows it.",
    port="The local port that was chosen or announced, or None for any.",
    flags="The names of its flags, of the command by which it was first used: signal, subflow, backup, implicit.",
)


class _Addresses(list[Address]):
    """A list of addresses, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        head = ("id", "address", "port", "flags")
        return table(head, [(each.id, each.address, each.port, " ".join(each.flags)) for each in self])


class _Endpoints(list[Endpoint]):
    """A list of endpoints, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        head = ("id", "address", "port", "interface", "flags")
        return table(head, [(each.id, each.address, each.port, each.interface, " ".join(each.flags)) for each in self])


def endpoints() -> list[Endpoint]:
    """Return the endpoints of the in-kernel path manager of the caller's network namespace, in the order of their ids.

    GET_ADDR of the generic netlink family mptcp_pm. No privilege. Raises UnsupportedError where the kernel has no such
    family.
    """
    return list_endpoints(None)


def add_endpoint(
    address: str,
    *,
    id: int | None = None,
    port: int | None = None,
    interface: str | None = None,
    subflow: bool = False,
    signal: bool = False,
    backup: bool = False,
    fullmesh: bool = False,
    laminar: bool = False,
) -> Endpoint:
    """Add an endpoint to the in-kernel path manager of the caller's network namespace, and return it.

    It is for every connection of the namespace under that path manager, of whichever process, those that exist
    included: see docs/path-managers.md. ``id``, from 1 to 255, is its address id; the kernel chooses one without it.
    ``subflow`` has connections that this namespace opened open a subflow from the address; with ``fullmesh`` also, one
    to each address of the peer. ``signal`` announces it by ADD_ADDR, with ``port`` if given, from 1 to 65535: then the
    kernel listens there. ``laminar`` has subflows to addresses that the peer announces opened from it. ``backup`` makes
    its subflows backups. An address without flags only gets its id. ``interface`` is what its subflows are bound to. An
    address that is not local (yet) is accepted, except with a port.

    ADD_ADDR of the generic netlink family mptcp_pm, and GET_ADDR to read back what became of it. Needs CAP_NET_ADMIN
    in the user namespace that owns the network namespace.

    Raises FileExistsError for an address that is an endpoint already, OSError (EBUSY) for an id that another has,
    (ERANGE) for one more than the kernel takes (8), (EADDRNOTAVAIL) for a port at an address that is not local and
    (EADDRINUSE) at one where another socket listens, (ENODEV) for an interface that does not exist. UnsupportedError
    for a flag that this kernel does not know: it would drop it silently, and no endpoint is left. PermissionError.
    TypeError and ValueError for wrong arguments, before any system call: a port without ``signal`` or with
    ``subflow``, and ``signal`` with ``fullmesh``, among them.
    """
    flags = bits(subflow=subflow, signal=signal, backup=backup, fullmesh=fullmesh, laminar=laminar)
    return add_to(None, address, id, port, interface, flags)


def change_endpoint(endpoint: Endpoint | int, *, backup: bool | None = None, fullmesh: bool | None = None) -> Endpoint:
    """Change flags of an endpoint of the caller's network namespace, and return it as it is then.

    ``endpoint`` is an Endpoint or its id. None leaves a flag as it is. A change of ``backup`` reaches the subflows that
    the in-kernel path manager has opened from there, by MP_PRIO; one of ``fullmesh`` opens and closes subflows.

    SET_FLAGS of the generic netlink family mptcp_pm, which writes both flags: they are read before and after. Needs
    CAP_NET_ADMIN in the user namespace that owns the network namespace.

    Raises OSError (EADDRNOTAVAIL) if there is no such endpoint, or if the id of an Endpoint is another address's by
    now; ValueError for ``fullmesh`` of one with ``signal``, UnsupportedError if the kernel did not change the flag,
    PermissionError, TypeError and ValueError for wrong arguments.
    """
    return change_in(None, endpoint, backup, fullmesh)


def remove_endpoint(endpoint: Endpoint | int) -> None:
    """Remove an endpoint of the caller's network namespace: an Endpoint, or one by its id.

    The in-kernel path manager closes the subflows that it has from there, and withdraws the address by RM_ADDR where it
    has announced it.

    DEL_ADDR of the generic netlink family mptcp_pm, by the id, which is looked up first. Needs CAP_NET_ADMIN in the
    user namespace that owns the network namespace.

    Raises OSError (EADDRNOTAVAIL) if there is no such endpoint, or if the id of an Endpoint is another address's by
    now; PermissionError, TypeError and ValueError.
    """
    remove_from(None, endpoint)


def flush_endpoints() -> None:
    """Remove all endpoints of the caller's network namespace, with the effects of remove_endpoint() for each.

    FLUSH_ADDRS of the generic netlink family mptcp_pm. Needs CAP_NET_ADMIN in the user namespace that owns the network
    namespace. Raises PermissionError.
    """
    _core.flush_endpoints(None)


def get_limits() -> Limits:
    """Return the limits of the in-kernel path manager of the caller's network namespace.

    GET_LIMITS of the generic netlink family mptcp_pm. No privilege.
    """
    return Limits(*_core.get_limits(None))


def set_limits(*, subflows: int | None = None, add_addr_accepted: int | None = None) -> Limits:
    """Set limits of the in-kernel path manager of the caller's network namespace, and return the previous ones.

    ``subflows`` is how many subflows a connection may have beside the initial one, those that the peer opens included;
    ``add_addr_accepted`` to how many addresses that the peer announces subflows are opened. Both from 0 to what the
    kernel takes, which is 8 today. None leaves a limit as it is. Connections read them at each decision, so they are
    for existing ones too.

    SET_LIMITS of the generic netlink family mptcp_pm. Needs CAP_NET_ADMIN in the user namespace that owns the network
    namespace. Raises OSError (EINVAL) for more than the kernel takes, PermissionError; TypeError and ValueError, before
    any system call, for what is not an int from 0 to 255.
    """
    return set_limits_in(None, subflows, add_addr_accepted)


def get_scheduler() -> str:
    """Return the packet scheduler that new connections of the caller's network namespace get.

    Reads the sysctl net.mptcp.scheduler (Linux 6.6). No privilege. Raises UnsupportedError where the kernel has no such
    sysctl.
    """
    return _core.get_scheduler()


def set_scheduler(name: str) -> str:
    """Set the packet scheduler that new connections of the caller's network namespace get; return the previous one.

    Existing connections keep theirs. Writes the sysctl net.mptcp.scheduler (Linux 6.6). Needs CAP_NET_ADMIN in the user
    namespace that owns the network namespace.

    Raises ValueError for a scheduler that this kernel does not have, naming those that it has; TypeError,
    PermissionError, OSError (EROFS) where /proc/sys is read-only, as in containers; UnsupportedError where the kernel
    has no such sysctl.
    """
    return _core.set_scheduler(_core.check_scheduler(name))


def available_schedulers() -> list[str]:
    """Return the names of the packet schedulers that the kernel has, those that were loaded as BPF programs included.

    Reads the sysctl net.mptcp.available_schedulers (Linux 6.10). No privilege. Raises UnsupportedError where the kernel
    has no such sysctl.
    """
    return _core.available_schedulers()


@contextlib.contextmanager
def use_endpoints(
    *addresses: str | Endpoint,
    id: int | None = None,
    port: int | None = None,
    interface: str | None = None,
    subflow: bool = False,
    signal: bool = False,
    backup: bool = False,
    fullmesh: bool = False,
    laminar: bool = False,
) -> Iterator[list[Endpoint]]:
    """Have these endpoints too within the block, and put back at its end what was before it, also after an exception.

    Each of ``addresses`` is a str, for which the keywords are those of add_endpoint(), or an Endpoint, which has its
    own. The block gets a list of those that were added. At its end the endpoints of the caller's network namespace are
    those that were there at its beginning, with their ids and flags, whatever the block or anybody else has added,
    changed, removed or flushed meanwhile; those with the flag ``implicit`` are the kernel's and left alone. Errors and
    privilege are those of add_endpoint().
    """
    flags = bits(subflow=subflow, signal=signal, backup=backup, fullmesh=fullmesh, laminar=laminar)
    with endpoints_in(None, addresses, id, port, interface, flags) as added:
        yield added


@contextlib.contextmanager
def use_limits(*, subflows: int | None = None, add_addr_accepted: int | None = None) -> Iterator[Limits]:
    """Set limits within the block, and put both back at its end, also after an exception.

    The block gets the limits as they are within it. Arguments, errors and privilege are those of set_limits().
    """
    with limits_in(None, subflows, add_addr_accepted) as limits:
        yield limits


@contextlib.contextmanager
def use_scheduler(name: str) -> Iterator[None]:
    """Have new connections of the caller's network namespace get this packet scheduler within the block.

    The previous one is put back at its end, also after an exception. Errors and privilege are those of set_scheduler().
    """
    with contextlib.ExitStack() as stack:
        with _interrupts.put_off():
            stack.callback(set_scheduler, set_scheduler(name))
        yield


# The same of the network namespace that a socket belongs to, or of the caller's for None: for the hosts of a lab too.


def addresses(connection: _core.Native) -> list[Address]:
    """Return the addresses that the kernel keeps for one connection."""

    def address(address: str, id: int, port: int | None, flags: int) -> Address:
        return Address(address, id, port, tuple(name for name in _IN_ORDER if flags & _FLAGS[name]))

    return _Addresses(address(*fields) for fields in connection.addresses())


def list_endpoints(fd: int | None) -> list[Endpoint]:
    return _Endpoints(_endpoint(*fields) for fields in _core.endpoints(fd))


def add_to(
    fd: int | None, address: str, id: int | None, port: int | None, interface: str | None, flags: int
) -> Endpoint:
    return _endpoint(*_core.add_endpoint(fd, address, id, port, interface, flags))


def change_in(fd: int | None, endpoint: Endpoint | int, backup: bool | None, fullmesh: bool | None) -> Endpoint:
    for name, value in (("backup", backup), ("fullmesh", fullmesh)):
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool or None, not {type(value).__name__}")
    return _endpoint(*_core.change_endpoint(fd, *_which(endpoint), backup, fullmesh))


def remove_from(fd: int | None, endpoint: Endpoint | int) -> None:
    _core.remove_endpoint(fd, *_which(endpoint))


def set_limits_in(fd: int | None, subflows: int | None, add_addr_accepted: int | None) -> Limits:
    return Limits(*_core.set_limits(fd, subflows, add_addr_accepted))


@contextlib.contextmanager
def endpoints_in(
    fd: int | None,
    addresses: tuple[str | Endpoint, ...],
    id: int | None,
    port: int | None,
    interface: str | None,
    flags: int,
) -> Iterator[list[Endpoint]]:
    with contextlib.ExitStack() as stack:
        with _interrupts.put_off():
            stack.callback(_restore, fd, list_endpoints(fd))
            added: list[Endpoint] = _Endpoints()
            for each in addresses:
                if isinstance(each, Endpoint):
                    added.append(_add_again(fd, each))
                else:
                    added.append(add_to(fd, each, id, port, interface, flags))
        yield added


@contextlib.contextmanager
def limits_in(fd: int | None, subflows: int | None, add_addr_accepted: int | None) -> Iterator[Limits]:
    with contextlib.ExitStack() as stack:
        with _interrupts.put_off():
            before = set_limits_in(fd, subflows, add_addr_accepted)
            stack.callback(set_limits_in, fd, before.subflows, before.add_addr_accepted)
        yield Limits(*_core.get_limits(fd))


def bits(**flags: bool) -> int:
    """Return the bits of those flags that are true."""
    return sum(_FLAGS[name] for name, is_set in flags.items() if is_set)


def _restore(fd: int | None, before: list[Endpoint]) -> None:
    """Make the endpoints what they were. What the kernel refuses does not keep it from the rest: it is raised last."""
    wanted = {each.id: each for each in before if not each.implicit}
    failed: list[OSError] = []

    def attempt(call: Any, *arguments: Any) -> None:
        try:
            call(fd, *arguments)
        except OSError as error:
            failed.append(error)

    for each in list_endpoints(fd):
        if each.implicit or each == wanted.get(each.id):
            wanted.pop(each.id, None)
            continue
        was = wanted.get(each.id)
        if was is not None and dataclasses.replace(each, backup=was.backup, fullmesh=was.fullmesh) == was:
            del wanted[each.id]
            attempt(change_in, each, was.backup, was.fullmesh)
        else:
            attempt(remove_from, each)
    for was in wanted.values():
        attempt(_add_again, was)
    if failed:
        raise failed[0]


def _add_again(fd: int | None, endpoint: Endpoint) -> Endpoint:
    flags = bits(**{name: getattr(endpoint, name) for name in _FLAGS})
    return add_to(fd, endpoint.address, endpoint.id, endpoint.port, endpoint.interface, flags)


def _which(endpoint: Endpoint | int) -> tuple[int, str | None, int | None]:
    if isinstance(endpoint, Endpoint):
        return endpoint.id, endpoint.address, endpoint.port
    return endpoint, None, None


def _endpoint(address: str, id: int, port: int | None, interface: str | None, flags: int) -> Endpoint:
    return Endpoint(address, id, port, interface, **{name: bool(flags & bit) for name, bit in _FLAGS.items()})


for _class in (Address, Endpoint, Limits):
    _class.__module__ = "mptcp"
