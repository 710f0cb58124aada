"""Sockets without a lab: what needs no privilege, over loopback."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator

import mptcp
import pytest
from support import exchange


@pytest.fixture(params=["127.0.0.1", "::1"])
def fallen_back(request: pytest.FixtureRequest) -> Iterator[mptcp.Socket]:
    """A client whose server speaks TCP only, over IPv4 and IPv6: the kernel answers differently."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with (
        socket.create_server((request.param, 0), family=family) as listener,
        mptcp.create_connection(listener.getsockname()[:2]) as sock,
    ):
        yield sock


def test_everything_is_a_socket(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock, peer = pair
    with sock.dup() as duplicate, mptcp.wrap(sock) as wrapped:
        for made in (sock, peer, duplicate, wrapped):
            assert isinstance(made, mptcp.Socket)
            assert isinstance(made, socket.socket)
            assert made.is_mptcp
            assert made.type == socket.SOCK_STREAM
            assert made.family == socket.AF_INET
        assert sock.token == duplicate.token == wrapped.token
        for made in (sock, peer, duplicate, wrapped):
            assert made.proto == socket.IPPROTO_TCP
            assert made.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) == 262


def test_info_carries_the_kernels_fields(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock, peer = pair
    info = sock.info()
    assert info.token == sock.token != peer.token
    assert info.flags is not None
    assert info.flags & 2, "MPTCP_INFO_FLAG_REMOTE_KEY_RECEIVED"
    fields = info.asdict()
    assert fields["token"] == info.token
    assert list(fields)[:2] == ["subflows", "add_addr_signal"]
    if info.bytes_sent is not None:
        assert (info.bytes_sent, info.bytes_received) == (1, 1)
    assert f"token={info.token}" in repr(info)
    assert info != peer.info()
    assert info != "something else"


def test_the_bare_getsockopt_agrees(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    raw = pair[0].getsockopt(284, 1, 256)
    assert int.from_bytes(raw[12:16], sys.byteorder) == pair[0].token
    assert pair[0].info().last_ack_recv is not None or len(raw) < 96


def test_subflows_over_loopback(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock, peer = pair
    [subflow] = sock.subflows()
    assert subflow.id == 1
    assert subflow.local == sock.getsockname()
    assert subflow.remote == sock.getpeername()
    assert subflow.state == "ESTABLISHED"
    assert (subflow.initial, subflow.backup, subflow.peer_backup) == (True, False, False)
    assert (subflow.local_id, subflow.remote_id) == (0, 0)
    assert subflow.cookie
    assert subflow.tcp_info.state == 1
    assert subflow.tcp_info.rtt is not None
    assert subflow.tcp_info.rtt > 0
    assert subflow == sock.subflows()[0]
    assert hash(subflow) == hash(sock.subflows()[0])
    assert subflow != peer.subflows()[0]
    assert subflow != 1
    with pytest.raises(AttributeError):
        subflow.id = 2


def test_a_fallback_is_told_not_raised(fallen_back: mptcp.Socket) -> None:
    assert not fallen_back.is_mptcp
    for call in (fallen_back.info, fallen_back.subflows, fallen_back.open_subflow):
        with pytest.raises(mptcp.NotMultipathError) as caught:
            call()
        assert caught.value.errno == errno.EOPNOTSUPP
    assert fallen_back.token is None
    assert fallen_back.path_manager is None


def test_a_tcp_client_is_accepted_as_tcp() -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert not accepted.is_mptcp
            with pytest.raises(mptcp.NotMultipathError):
                accepted.subflows()


def test_a_socket_that_is_not_connected() -> None:
    with mptcp.Socket() as sock:
        assert sock.is_mptcp
        assert sock.subflows() == []
        assert sock.token is None
        assert sock.path_manager is None
        with pytest.raises(OSError, match="not connected") as caught:
            sock.open_subflow()
        assert caught.value.errno == errno.ENOTCONN
    for of_closed in (lambda: sock.info(), lambda: sock.token, lambda: sock.path_manager):
        with pytest.raises(OSError, match="Bad file descriptor"):
            of_closed()


def test_a_listening_socket() -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener:
        assert listener.is_mptcp
        assert listener.subflows() == []
        with pytest.raises(OSError, match="not connected"):
            listener.open_subflow()


def test_wrap_keeps_the_blocking_mode(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock, _ = pair
    for timeout in (None, 0.0, 7.5):
        sock.settimeout(timeout)
        with mptcp.wrap(sock) as wrapped:
            assert wrapped.gettimeout() == timeout
            assert sock.getblocking() == wrapped.getblocking()
    sock.setblocking(False)
    with mptcp.wrap(sock.fileno()) as wrapped:
        assert wrapped.gettimeout() == 0.0
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_a_duplicate_keeps_the_connection_open(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock, peer = pair
    wrapped = mptcp.wrap(sock)
    sock.close()
    wrapped.sendall(b"still here")
    assert peer.recv(10) == b"still here"
    wrapped.close()
    assert peer.recv(1) == b""


def test_what_wrap_refuses() -> None:
    with pytest.raises(TypeError, match="a socket or a descriptor"):
        mptcp.wrap("socket")
    with pytest.raises(TypeError):
        mptcp.wrap(True)
    with open("/dev/null") as file, pytest.raises(OSError, match="Socket operation on non-socket"):
        mptcp.wrap(file)
    with socket.socket(type=socket.SOCK_DGRAM) as udp, mptcp.wrap(udp) as wrapped:
        assert not wrapped.is_mptcp
        with pytest.raises(mptcp.NotMultipathError):
            wrapped.info()


def test_detach_and_make_again(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock, peer = pair
    token = sock.token
    with mptcp.Socket(fileno=sock.detach()) as again:
        assert again.token == token
        exchange(again, peer)


def test_makefile_holds_the_socket_open(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    sock, peer = pair
    with sock.makefile("rb") as file:
        sock.close()
        peer.sendall(b"line\n")
        assert file.readline() == b"line\n"


def test_pickling_is_refused(pair: tuple[mptcp.Socket, mptcp.Socket]) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        pickle.dumps(pair[0])


def test_a_path_manager_has_a_known_name() -> None:
    for call in (mptcp.set_path_manager, lambda name: mptcp.Socket(path_manager=name)):
        with pytest.raises(ValueError, match="'kernel' or 'userspace'"):
            call("mine")
        with pytest.raises(TypeError):
            call(1)
    assert mptcp.get_path_manager() in ("kernel", "userspace")
    with mptcp.Socket() as sock, pytest.raises(ValueError, match="latched when a socket is created"):
        mptcp.Socket(fileno=sock.fileno(), path_manager="userspace")


def test_endpoints_are_checked_before_any_call() -> None:
    """On a socket that is not connected, so that a check after the first call would raise something else."""
    with mptcp.Socket() as sock:
        for wrong in (5, ["10.0.0.1", 1], ("10.0.0.1",), ("10.0.0.1", "1"), ("10.0.0.1", True), (1, 1), (None, 1)):
            for end in ("local", "remote"):
                with pytest.raises(TypeError, match=end):
                    sock.open_subflow(**{end: wrong})
        for bad in (("10.0.0.1", -1), ("10.0.0.1", 65536), ("10.0.0.1", 2**80), "localhost", "10.0.0.1%lo", "fe80::1"):
            with pytest.raises(ValueError, match=r"port|address"):
                sock.open_subflow(local=bad)
        with pytest.raises(ValueError, match="same address family"):
            sock.open_subflow("10.0.0.1", "::1")
        with pytest.raises(ValueError, match="timeout"):
            sock.open_subflow(timeout=-1)
        with pytest.raises(ValueError, match="timeout"):
            sock.open_subflow(timeout=float("nan"))
        with pytest.raises(TypeError):
            sock.open_subflow(timeout="soon")
        with pytest.raises(TypeError):
            sock.open_subflow(interface=3)
        for wrong in ("1", None, 1.0, True):
            with pytest.raises(TypeError, match="must be a Subflow, a subflow id, or its ends"):
                sock.close_subflow(wrong)
        with pytest.raises(ValueError, match="subflow id"):
            sock.close_subflow(-1)


def test_errors_of_subflows_are_the_builtins_of_their_errno() -> None:
    for number, builtin in (
        (errno.ETIMEDOUT, TimeoutError),
        (errno.ECONNREFUSED, ConnectionRefusedError),
        (errno.ECONNABORTED, ConnectionAbortedError),
        (errno.ECONNRESET, ConnectionResetError),
    ):
        error = mptcp.SubflowError(number, "why", 3)
        assert isinstance(error, builtin)
        assert type(error).__name__ == "SubflowError"
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.errno, copy.strerror, copy.reset_reason) == (number, "why", 3)
        assert isinstance(copy, builtin)
    assert type(mptcp.SubflowError(errno.EPROTO, "why")) is mptcp.SubflowError


def test_connecting_where_nobody_listens() -> None:
    with mptcp.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(ConnectionRefusedError):
        mptcp.create_connection(address)
    with pytest.raises(ExceptionGroup) as caught:
        mptcp.create_connection(address, all_errors=True)
    assert len(caught.value.exceptions) == 1


def test_server_options() -> None:
    with (
        mptcp.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        mptcp.create_connection(("127.0.0.1", listener.getsockname()[1])) as sock,
    ):
        peer, address = listener.accept()
        with peer:
            assert address[0] == "::ffff:127.0.0.1"
            exchange(sock, peer)
            [subflow] = peer.subflows()
            assert subflow.remote == address
            assert subflow.cookie
    with pytest.raises(ValueError, match="AF_INET6"):
        mptcp.create_server(("", 0), dualstack_ipv6=True)
    with mptcp.create_server(("127.0.0.1", 0), reuse_port=True) as one:
        mptcp.create_server(one.getsockname(), reuse_port=True).close()
    with mptcp.create_server(("127.0.0.1", 0)) as one, pytest.raises(OSError, match="while attempting to bind"):
        mptcp.create_server(one.getsockname())


def test_the_default_timeout_is_minded() -> None:
    socket.setdefaulttimeout(3.0)
    try:
        with mptcp.create_server(("127.0.0.1", 0)) as listener:
            assert listener.gettimeout() == 3.0
            with mptcp.create_connection(listener.getsockname()) as sock:
                peer, _ = listener.accept()
                with peer:
                    assert (sock.gettimeout(), peer.gettimeout()) == (3.0, 3.0)
    finally:
        socket.setdefaulttimeout(None)


def test_import_needs_neither_numpy_nor_privilege() -> None:
    program = "import sys, mptcp; print(sorted({'numpy', 'pyroute2', 'asyncio'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_import_leaves_the_rest_for_when_it_is_asked_for() -> None:
    rooms = "{'mptcp._' + room for room in ('endpoints', 'explain', 'patch', 'policy', 'recording', 'trace')}"
    program = (
        f"import sys, mptcp; assert set(mptcp.__all__) <= set(dir(mptcp)); print(sorted({rooms} & set(sys.modules)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPTCP_PATCH"}
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert output.stdout.strip() == "[]"


def test_all_is_what_can_be_imported() -> None:
    module = type(sys)
    things = {name: getattr(mptcp, name) for name in mptcp.__all__}
    for thing in things.values():
        assert (thing.__name__ if isinstance(thing, module) else thing.__module__).startswith("mptcp")
    public = {name: thing for name, thing in vars(mptcp).items() if not name.startswith("_")}
    # Of modules only those that are imported with the package.
    assert public.keys() - things.keys() == {
        name for name, thing in public.items() if isinstance(thing, module) and name != "enhanced_api"
    }
