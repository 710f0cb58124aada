"""The in-kernel path manager of a network namespace: endpoints, limits and the packet scheduler.

``ip mptcp`` of iproute2 is the witness where it is installed: it does not know what we do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mptcp
import pytest
from mptcp import Endpoint, Limits
from mptcp.lab import Host, Lab, Link
from support import PORT, eventually, exchange

# Those that ip of iproute2 6.1 knows.
FLAGS = {"signal", "subflow", "backup", "fullmesh", "implicit"}

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    """A host with four addresses and the in-kernel path manager."""
    with contextlib.ExitStack() as stack:
        try:
            lab = stack.enter_context(Lab())
        except PermissionError as error:
            pytest.skip(f"needs namespaces: {error}")
        made, other = lab.host("a"), lab.host("b")
        for _ in range(4):
            lab.link(made, other)
        made.set_path_manager("kernel")
        yield made


@pytest.fixture
def host(shared: Host) -> Host:
    """It without endpoints, and with limits that no test sets."""
    shared.flush_endpoints()
    shared.set_limits(subflows=2, add_addr_accepted=1)
    return shared


def address(number: int) -> str:
    return f"10.0.{number}.1"


def ip_mptcp(host: Host, *words: str) -> str:
    if shutil.which("ip") is None:
        pytest.skip("needs ip of iproute2")
    return host.run(["ip", "-j", "mptcp", *words], check=True, capture_output=True, text=True).stdout


def agrees_with_ip(host: Host) -> list[Endpoint]:
    """What we list is what ``ip mptcp endpoint`` lists; older ones do not know laminar."""
    listed = host.endpoints()
    witness = [
        (each["address"], each["id"], each.get("port"), each.get("dev"), {name for name in FLAGS if name in each})
        for each in json.loads(ip_mptcp(host, "endpoint", "show") or "[]")
    ]
    ours = [(each.address, each.id, each.port, each.interface, {*each.flags} & FLAGS) for each in listed]
    assert ours == witness
    return listed


def has_laminar(host: Host) -> bool:
    try:
        host.remove_endpoint(host.add_endpoint("192.0.2.99", laminar=True))
    except mptcp.UnsupportedError:
        return False
    return True


def test_every_flag_port_id_and_interface(host: Host) -> None:
    one = host.add_endpoint(address(1), subflow=True, backup=True, fullmesh=True)
    assert one == Endpoint(address(1), 1, subflow=True, backup=True, fullmesh=True)
    assert one.flags == ("subflow", "backup", "fullmesh")
    link = host.lab.links[1]
    two = host.add_endpoint(address(2), id=77, interface=link.interface(host), signal=True, subflow=True)
    assert two == Endpoint(address(2), 77, interface=link.interface(host), signal=True, subflow=True)
    three = host.add_endpoint(address(3), signal=True, port=7000)
    assert (three.port, three.flags) == (7000, ("signal",))
    four = host.add_endpoint("fd00:4::1")
    assert four.flags == ()
    agrees_with_ip(host)
    assert host.endpoints() == sorted([one, two, three, four], key=lambda each: each.id)
    host.remove_endpoint(77)
    host.remove_endpoint(three)
    assert agrees_with_ip(host) == sorted([one, four], key=lambda each: each.id)
    host.flush_endpoints()
    assert agrees_with_ip(host) == []


def test_what_ip_adds_is_listed(host: Host) -> None:
    device = host.lab.links[2].interface(host)
    ip_mptcp(host, "endpoint", "add", address(3), "dev", device, "id", "9", "signal", "backup")
    ip_mptcp(host, "endpoint", "add", address(4), "port", "7001", "signal")
    assert agrees_with_ip(host) == [
        *(each for each in host.endpoints() if each.id < 9),
        Endpoint(address(3), 9, None, device, signal=True, backup=True),
        *(each for each in host.endpoints() if each.id > 9),
    ]
    assert len(host.endpoints()) == 2


def test_a_change_leaves_the_other_flag(host: Host) -> None:
    endpoint = host.add_endpoint(address(2), subflow=True, backup=True, fullmesh=True)
    assert host.change_endpoint(endpoint, backup=False).flags == ("subflow", "fullmesh")
    agrees_with_ip(host)
    assert host.change_endpoint(endpoint.id, backup=True, fullmesh=False).flags == ("subflow", "backup")
    assert host.change_endpoint(endpoint.id) == host.endpoints()[0]
    assert agrees_with_ip(host)[0].flags == ("subflow", "backup")


REFUSED: dict[str, tuple[Callable[[Host], object], type[Exception], int | None]] = {
    "the same address": (lambda h: h.add_endpoint(address(1), signal=True), FileExistsError, errno.EEXIST),
    "the same address, mapped": (lambda h: h.add_endpoint(f"::ffff:{address(1)}"), FileExistsError, errno.EEXIST),
    "the same id": (lambda h: h.add_endpoint(address(2), id=1), OSError, errno.EBUSY),
    "no such interface": (lambda h: h.add_endpoint(address(2), interface="none0"), OSError, errno.ENODEV),
    "a port elsewhere": (
        lambda h: h.add_endpoint("192.0.2.1", signal=True, port=7000),
        OSError,
        errno.EADDRNOTAVAIL,
    ),
    "a port without signal": (lambda h: h.add_endpoint(address(2), port=7000), ValueError, None),
    "a port with subflow": (lambda h: h.add_endpoint(address(2), port=7, signal=True, subflow=True), ValueError, None),
    "signal with fullmesh": (lambda h: h.add_endpoint(address(2), signal=True, fullmesh=True), ValueError, None),
    "id 0": (lambda h: h.add_endpoint(address(2), id=0), ValueError, None),
    "id 256": (lambda h: h.add_endpoint(address(2), id=256), ValueError, None),
    "port 0": (lambda h: h.add_endpoint(address(2), signal=True, port=0), ValueError, None),
    "a name": (lambda h: h.add_endpoint("localhost"), ValueError, None),
    "no address": (lambda h: h.add_endpoint("::"), ValueError, None),
    "an interface in the address": (lambda h: h.add_endpoint("fe80::1%lo"), ValueError, None),
    "bytes": (lambda h: h.add_endpoint(b"10.0.2.1"), TypeError, None),  # type: ignore[arg-type]
    "remove what is not there": (lambda h: h.remove_endpoint(9), OSError, errno.EADDRNOTAVAIL),
    "remove id 0": (lambda h: h.remove_endpoint(0), ValueError, None),
    "remove by address": (lambda h: h.remove_endpoint(address(1)), TypeError, None),  # type: ignore[arg-type]
    "remove another's id": (lambda h: h.remove_endpoint(Endpoint(address(2), 1)), OSError, errno.EADDRNOTAVAIL),
    "change what is not there": (lambda h: h.change_endpoint(9, backup=True), OSError, errno.EADDRNOTAVAIL),
    "change with a number": (lambda h: h.change_endpoint(1, backup=1), TypeError, None),  # type: ignore[arg-type]
    "fullmesh of signal": (lambda h: h.change_endpoint(1, fullmesh=True), ValueError, None),
    "limits that the kernel has not": (lambda h: h.set_limits(subflows=255), OSError, errno.EINVAL),
    "limits below 0": (lambda h: h.set_limits(subflows=-1), ValueError, None),
    "a scheduler that is not there": (lambda h: h.set_scheduler("nosuch"), ValueError, None),
    "two words for a scheduler": (lambda h: h.set_scheduler("default default"), ValueError, None),
}


@pytest.mark.parametrize(("call", "error", "number"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_changes_nothing(
    host: Host, call: Callable[[Host], object], error: type[Exception], number: int | None
) -> None:
    host.add_endpoint(address(1), signal=True)
    before = host.endpoints(), host.get_limits(), host.get_scheduler()
    with pytest.raises(error) as raised:
        call(host)
    if number is not None:
        assert isinstance(raised.value, OSError)
        assert raised.value.errno == number
    assert (host.endpoints(), host.get_limits(), host.get_scheduler()) == before


def test_messages_name_what_is_in_the_way(host: Host) -> None:
    host.add_endpoint(address(1), id=5)
    with pytest.raises(FileExistsError, match="with id 5"):
        host.add_endpoint(address(1))
    with pytest.raises(OSError, match=f"belongs to endpoint {address(1)}"):
        host.add_endpoint(address(2), id=5)


def test_one_more_than_the_kernel_takes(host: Host) -> None:
    added: list[Endpoint] = []

    def add_many() -> None:
        for number in range(1, 256):
            added.append(host.add_endpoint(f"192.0.2.{number}"))

    with pytest.raises(OSError, match="takes no more") as raised:
        add_many()
    assert raised.value.errno == errno.ERANGE
    assert agrees_with_ip(host) == added


def test_a_flag_that_the_kernel_drops_leaves_no_endpoint(host: Host) -> None:
    """A bit of which no kernel has heard, by the function that all flags go through."""
    from mptcp import _core

    with host._in_namespace() as fd, pytest.raises(mptcp.UnsupportedError, match="no endpoints with the flag"):
        _core.add_endpoint(fd, address(2), None, None, None, 2 | 1 << 30)
    assert agrees_with_ip(host) == []


def test_laminar_is_kept_or_refused(host: Host) -> None:
    if has_laminar(host):
        assert host.add_endpoint(address(2), laminar=True).flags == ("laminar",)
        assert host.endpoints()[0].laminar
    else:
        assert host.endpoints() == []


def test_an_interface_that_is_gone_has_its_index(host: Host) -> None:
    host.run(["ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1"], check=True)
    endpoint = host.add_endpoint(address(2), interface="gone0", subflow=True)
    assert endpoint.interface == "gone0"
    host.run(["ip", "link", "delete", "gone0"], check=True)
    (left,) = host.endpoints()
    assert left.interface is not None
    assert left.interface.removeprefix("if").isdecimal()


def test_limits(host: Host) -> None:
    before = host.get_limits()
    assert host.set_limits(subflows=3) == before
    assert host.set_limits(add_addr_accepted=4) == Limits(3, before.add_addr_accepted)
    assert host.get_limits() == Limits(3, 4)
    # Not JSON with iproute2 6.1.
    assert [int(word) for word in re.findall(r"\d+", ip_mptcp(host, "limits", "show"))] == [4, 3]
    assert host.set_limits(subflows=0, add_addr_accepted=0) == Limits(3, 4)
    assert host.set_limits() == Limits(0, 0)


def test_scheduler(host: Host) -> None:
    try:
        before = host.get_scheduler()
        available = host.available_schedulers()
    except mptcp.UnsupportedError as error:
        pytest.skip(str(error))
    assert before in available
    with host.use_scheduler(available[-1]):
        assert host.get_scheduler() == available[-1] == host.sysctl("net.mptcp.scheduler")
    assert host.get_scheduler() == before
    with pytest.raises(ValueError, match=f"must be one of .*{before}"):
        host.set_scheduler("nosuch")


def test_what_was_is_put_back(host: Host) -> None:
    port = host.add_endpoint(address(3), signal=True, port=7000)
    flags = host.add_endpoint(address(1), id=7, subflow=True, backup=True)
    gone = host.add_endpoint(address(4), id=9, subflow=True)
    before, limits = host.endpoints(), host.get_limits()

    def block() -> None:
        with host.use_limits(subflows=5) as within, host.use_endpoints(address(2), subflow=True, id=30) as added:
            assert within == Limits(5, limits.add_addr_accepted) == host.get_limits()
            assert added == [Endpoint(address(2), 30, subflow=True)]
            assert agrees_with_ip(host) == [*before, *added]
            host.set_limits(add_addr_accepted=6)
            host.change_endpoint(flags, backup=False, fullmesh=True)
            host.remove_endpoint(gone)
            host.add_endpoint("192.0.2.9", id=9, signal=True)
            host.remove_endpoint(port)
            raise KeyError

    with pytest.raises(KeyError):
        block()
    assert agrees_with_ip(host) == before
    assert host.get_limits() == limits
    with host.use_endpoints():
        host.flush_endpoints()
    assert agrees_with_ip(host) == before
    with host.use_endpoints(dataclasses.replace(gone, address=address(2), id=20)) as added:
        assert added[0].flags == ("subflow",)


def test_what_cannot_be_added_leaves_none_of_them(host: Host) -> None:
    with pytest.raises(FileExistsError), host.use_endpoints(address(1), address(2), address(1)):
        raise AssertionError("it was refused")
    assert host.endpoints() == []
    with pytest.raises(ValueError, match="port"), host.use_endpoints(address(1), port=7000):
        raise AssertionError("it was refused")
    assert host.endpoints() == []


def test_endpoints_open_subflows_and_removal_closes_them(mptcp_two_paths: TwoPaths) -> None:
    client, server, (first, second) = mptcp_two_paths
    for one in (client, server):
        one.set_path_manager("kernel")
        one.set_limits(subflows=4, add_addr_accepted=4)
    with (
        server.create_server((first.address(server), PORT)) as listener,
        client.create_connection((first.address(server), PORT), timeout=10) as sock,
        listener.accept()[0] as peer,
    ):
        exchange(sock, peer)
        endpoint = client.add_endpoint(second.address(client), subflow=True, id=5)
        assert eventually(lambda: [each.local_id for each in sock.subflows()] == [0, 5], 20)
        # What is changed before the peer has accepted it, no MP_PRIO tells.
        assert eventually(lambda: all(each._accepted for each in sock.subflows()), 20)
        client.change_endpoint(endpoint, backup=True)
        assert eventually(lambda: any(each.peer_backup for each in peer.subflows()), 20)
        client.remove_endpoint(endpoint)
        assert eventually(lambda: [each.local_id for each in sock.subflows()] == [0], 20)
        assert [each.implicit for each in client.endpoints()] in ([], [True])


# What follows is the caller's own namespace, in a process of its own inside a host.

_OWN = """
import mptcp
made = mptcp.add_endpoint("192.0.2.7", subflow=True)
assert mptcp.endpoints() == [made], mptcp.endpoints()
assert mptcp.change_endpoint(made, backup=True).flags == ("subflow", "backup")
before = mptcp.get_limits()
with mptcp.use_limits(subflows=7), mptcp.use_scheduler(mptcp.get_scheduler()), mptcp.use_endpoints("192.0.2.8"):
    assert mptcp.get_limits().subflows == 7
    assert [each.address for each in mptcp.endpoints()] == ["192.0.2.7", "192.0.2.8"]
    mptcp.flush_endpoints()
assert mptcp.get_limits() == before
assert [each.flags for each in mptcp.endpoints()] == [("subflow", "backup")]
mptcp.remove_endpoint(made.id)
assert mptcp.endpoints() == []
assert mptcp.get_scheduler() in mptcp.available_schedulers()
"""


def test_the_callers_own_namespace(host: Host) -> None:
    host.run([sys.executable, "-W", "error", "-c", _OWN], check=True)


_UNPRIVILEGED = """
import mptcp
assert isinstance(mptcp.endpoints(), list)
limits = mptcp.get_limits()
for call in (
    lambda: mptcp.add_endpoint("192.0.2.7"),
    lambda: mptcp.set_limits(subflows=limits.subflows),
    lambda: mptcp.flush_endpoints(),
):
    try:
        call()
    except PermissionError as error:
        assert "CAP_NET_ADMIN" in str(error), error
    else:
        raise AssertionError(call)
"""


def test_reading_needs_no_privilege_and_changing_names_it(host: Host) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv of util-linux")
    unprivileged = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    host.run([*unprivileged, sys.executable, "-c", _UNPRIVILEGED], check=True)


# In a shell.


def shell(host: Host, *words: str, status: int = 0) -> str:
    done = host.run([sys.executable, "-W", "error", "-m", "mptcp", *words], capture_output=True, text=True)
    assert done.returncode == status, done
    if status:
        assert done.stderr.startswith(f"mptcp {words[0]}: "), done.stderr
        assert "Traceback" not in done.stderr
    return done.stdout


def test_endpoints_in_a_shell(host: Host) -> None:
    assert "no endpoints" in shell(host, "endpoint", "list")
    device = host.lab.links[1].interface(host)
    added = shell(host, "endpoint", "add", address(2), "--id=4", "--interface", device, "--subflow", "--backup")
    assert added.split() == ["4", address(2), "dev", device, "subflow", "backup"]
    reported = json.loads(shell(host, "endpoint", "list", "--json"))
    assert reported == {"schema": 1, "endpoints": [dataclasses.asdict(host.endpoints()[0])]}
    agrees_with_ip(host)
    shell(host, "endpoint", "change", "4", "--no-backup", "--fullmesh")
    assert host.endpoints()[0].flags == ("subflow", "fullmesh")
    shell(host, "endpoint", "add", address(3), "--signal", "--port", "7000")
    assert "port 7000" in shell(host, "endpoint", "list")
    shell(host, "endpoint", "remove", address(2))
    assert [each.address for each in host.endpoints()] == [address(3)]
    removed = json.loads(shell(host, "endpoint", "flush", "--json"))["endpoints"]
    assert [each["address"] for each in removed] == [address(3)]
    assert host.endpoints() == []


def test_limits_in_a_shell(host: Host) -> None:
    assert json.loads(shell(host, "limits", "--subflows", "3", "--add-addr-accepted=2", "--json")) == {
        "schema": 1,
        "subflows": 3,
        "add_addr_accepted": 2,
    }
    assert shell(host, "limits") == "subflows 3, add_addr_accepted 2\n"
    assert host.get_limits() == Limits(3, 2)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("endpoint", "add", "10.0.2.1", "--port=7000"), 2),
        (("endpoint", "add", "name"), 2),
        (("endpoint", "remove", "9"), 1),
        (("endpoint", "remove", "10.0.2.1"), 1),
        (("endpoint", "change", "9", "--backup"), 1),
        (("limits", "--subflows=200"), 1),
    ],
)
def test_refusals_in_a_shell(host: Host, words: tuple[str, ...], status: int) -> None:
    shell(host, *words, status=status)


def test_nothing_of_this_suite_asks_ip_for_what_the_package_does() -> None:
    """``ip mptcp`` is a witness in three files, and asked in one place where the package has no call."""
    tests = Path(__file__).parent.parent
    asking = {
        str(path.relative_to(tests))
        for path in tests.rglob("*.py")
        if '"ip", "mptcp"' in path.read_text() or '"mptcp", "endpoint", ' in path.read_text()
    }
    assert asking <= {
        "conformance/scenario.py",
        "docs/test_kernel_bugs.py",
        "docs/test_path_managers.py",
        "namespace/test_endpoints.py",
    }
