"""What every shipped policy takes: paths that are never used, and subflows that are bound to their path's interface."""

from __future__ import annotations

import contextlib
import inspect
import logging
import socket

import mptcp
import pytest
from flows import Site, Start
from mptcp import policies
from mptcp.lab import Host, Lab, Link
from mptcp.policies import FullMesh, NDiffPorts, OnlyFor, Path, PathPolicy, Prefer
from support import connected, eventually, needs_python

TwoPaths = tuple[Host, Host, tuple[Link, Link]]

SHIPPED = [name for name in policies.__all__ if name not in ("Path", "PathPolicy")]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_policy_takes_both(name: str) -> None:
    parameters = inspect.signature(getattr(policies, name)).parameters
    assert parameters["exclude"].kind is parameters["bind"].kind is inspect.Parameter.KEYWORD_ONLY


@needs_python
def test_an_excluded_path_is_never_used(site: Site, start: Start) -> None:
    a, b, c = site.links
    # Not by a policy that runs beside either.
    with site.client.run_policy(FullMesh(exclude=b), OnlyFor(b, ports=[5000])):
        flow = start(a)
        flow.comes_to_be_on(a, c)
        assert flow.carrying(a, c)
    with site.client.run_policy(FullMesh(exclude=[b, c.address(site.client)])):
        other = start(a)
        assert other.carrying(a)
        assert other.on(a)
    flow.finish()
    other.finish()


def interfaces(host: Host) -> dict[str, str]:
    """Of each address, its interface."""
    rows = host.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout.splitlines()
    return {row.split()[3].partition("/")[0]: row.split()[1] for row in rows}


def bound(client: Host, sock: mptcp.Socket) -> dict[str, int]:
    """Of each subflow's local address, the index of the interface that it is bound to."""
    option = (socket.SOL_SOCKET, 62)  # SO_BINDTOIFINDEX
    found: dict[str, int] = {}
    for subflow in [one for conn in client.connections(token=sock.token) for one in conn.subflows()]:
        with contextlib.suppress(mptcp.SubflowError):  # closed meanwhile, by the policy
            found[subflow.local[0]] = subflow.getsockopt(*option)
    return found


def why_not_bound(two_paths: TwoPaths) -> str | None:
    """Why this kernel cannot bind a subflow to an interface; None if it can."""
    client, server, paths = two_paths
    with connected(client, server, paths) as made, server.run_policy(mptcp.Policy()):
        try:
            made.sock.open_subflow(*made.second, interface=paths[1].interface(client))
        except mptcp.UnsupportedError as error:
            return f"needs Linux 6.3: {error}"
    return None


@pytest.fixture
def linked(mptcp_lab: Lab) -> TwoPaths:
    """Two hosts whose routes are the kernel's own."""
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    return client, server, (mptcp_lab.link(client, server), mptcp_lab.link(client, server))


@pytest.fixture
def binds(mptcp_two_paths: TwoPaths) -> None:
    if why := why_not_bound(mptcp_two_paths):
        pytest.skip(why)


def comes_to_be_from(client: Host, sock: mptcp.Socket, addresses: set[str]) -> bool:
    return eventually(lambda: set(bound(client, sock)) == addresses)


def test_a_kernel_that_cannot_bind(mptcp_two_paths: TwoPaths, caplog: pytest.LogCaptureFixture) -> None:
    """What must be bound is not opened, everything else is not bound."""
    if why_not_bound(mptcp_two_paths) is None:
        pytest.skip("needs Linux before 6.3, which cannot bind subflows")
    client, server, paths = mptcp_two_paths
    name = paths[1].interface(client)
    first, second = (path.address(client) for path in paths)
    for policy, expected in ((FullMesh(bind=True), {first}), (Prefer(name), {second})):
        caplog.clear()
        with server.run_policy(mptcp.Policy()), connected(client, server, paths) as made, client.run_policy(policy):
            assert eventually(lambda: "to interfaces: this kernel cannot bind" in caplog.text)
            assert comes_to_be_from(client, made.sock, expected)
            assert set(bound(client, made.sock).values()) == {0}
            assert len(caplog.records) < 5, "it is said once"


@pytest.mark.usefixtures("binds")
def test_bind(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    name = interfaces(client)[paths[1].address(client)]
    row = client.run(["ip", "-o", "link", "show", name], capture_output=True, text=True, check=True).stdout
    index = int(row.partition(":")[0])
    first, second = (path.address(client) for path in paths)
    for policy, expected in (
        (FullMesh(), 0),
        (FullMesh(bind=True), index),
        (Prefer(paths[1]), 0),
        (Prefer(name), index),
        (Prefer(name, bind=False), 0),
    ):
        with server.run_policy(mptcp.Policy()), connected(client, server, paths) as made, client.run_policy(policy):
            assert eventually(lambda sock=made.sock: second in bound(client, sock)), policy  # type: ignore[misc]
            assert bound(client, made.sock)[second] == expected, policy
            assert bound(client, made.sock).get(first, 0) == 0


@pytest.mark.usefixtures("binds")
def test_n_diff_ports_bound(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with (
        server.run_policy(mptcp.Policy()),
        connected(client, server, paths),
        client.run_policy(NDiffPorts(3, bind=True)),
    ):
        [conn] = [conn for conn in client.connections() if not conn.server_side]
        assert eventually(lambda: len(conn.subflows()) == 3)
        option = (socket.SOL_SOCKET, 62)  # SO_BINDTOIFINDEX
        assert [subflow.getsockopt(*option) != 0 for subflow in conn.subflows()] == [False, True, True]


def without_source_rules(client: Host, server: Host, paths: tuple[Link, Link]) -> str:
    """The client's second address sends by the first interface from now on. Return the name of the second one."""
    first, second = (path.interface(client) for path in paths)
    remote = paths[0].address(server)
    client.run(["ip", "rule", "flush"], check=True)
    for table, priority in (("local", "0"), ("main", "32766")):
        client.run(["ip", "rule", "add", "table", table, "priority", priority], check=True)
    # A second way to the server, as two default routes are.
    client.run(["ip", "route", "add", remote, "dev", first, "metric", "10"], check=False)
    client.run(["ip", "route", "add", remote, "dev", second, "metric", "20"], check=True)
    return second


def test_on_a_host_without_source_rules_what_is_not_bound_is_reported(
    linked: TwoPaths, caplog: pytest.LogCaptureFixture
) -> None:
    client, server, paths = linked
    name = without_source_rules(*linked)
    caplog.set_level(logging.WARNING, "mptcp.policy")
    with (
        server.run_policy(mptcp.Policy()),
        connected(client, server, paths),
        client.run_policy(FullMesh(bind=False)),
    ):
        assert eventually(lambda: bool(caplog.messages))
    [message, *_] = caplog.messages
    assert message.startswith(f"FullMesh: what is sent from {paths[1].address(client)}, an address of {name}, to ")
    assert "bind=True" in message


def test_on_a_host_without_source_rules_what_is_bound_leaves_by_its_interface(
    linked: TwoPaths, caplog: pytest.LogCaptureFixture
) -> None:
    client, server, paths = linked
    if why := why_not_bound(linked):
        pytest.skip(why)
    name = without_source_rules(*linked)
    second = paths[1].address(client)

    def carried() -> tuple[int, int]:
        return paths[0].stats()[0].bytes, paths[1].stats()[0].bytes

    caplog.set_level(logging.WARNING, "mptcp.policy")
    with (
        server.run_policy(mptcp.Policy()),
        connected(client, server, paths) as made,
        client.run_policy(Prefer(name)),
    ):
        assert eventually(lambda: [subflow.local[0] for subflow in made.sock.subflows()] == [second])
        before = carried()
        made.sock.sendall(bytes(200_000))
        received = 0
        while received < 200_000:
            received += len(made.peer.recv(1 << 16))
        after = carried()
        assert after[1] - before[1] > 200_000 > 50_000 > after[0] - before[0]
    assert not caplog.messages


class Last(PathPolicy):
    """One of one's own: a subflow on the last of some paths."""

    def __init__(self, *names: policies.Path | str | Link) -> None:
        super().__init__()
        self.mine = [Path(name) for name in names]  # type: ignore[arg-type]

    def wanted(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow], opening: object) -> None:
        self.ensure(conn, subflows, opening, self.mine[-1])  # type: ignore[arg-type]


def test_one_of_ones_own(mptcp_two_paths: TwoPaths) -> None:
    client, server, paths = mptcp_two_paths
    with server.run_policy(mptcp.Policy()), connected(client, server, paths) as made, client.run_policy(Last(*paths)):
        assert eventually(lambda: len(made.sock.subflows()) == 2)
        assert made.sock.subflows()[1].local[0] == paths[1].address(client)
    with pytest.raises(ValueError, match="'eth99' does not exist"):
        client.run_policy(Last("eth99"))


def test_paths() -> None:
    of_interface, address, network = Path("eth0"), Path("10.0.1.1"), Path("10.0.1.0/24")
    local = mptcp.LocalAddress("10.0.1.1", "eth0")
    other = mptcp.LocalAddress("10.0.1.2", "eth1")
    assert [path.interface for path in (of_interface, address, network)] == ["eth0", None, None]
    assert [local in path for path in (of_interface, address, network)] == [True, True, True]
    assert [other in path for path in (of_interface, address, network)] == [False, False, True]
    assert repr(network) == "Path('10.0.1.0/24')"
