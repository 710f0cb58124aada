"""What one host cannot show: on it, one subscription to path manager events serves every namespace.

`.ci/matrix --two-machines` starts two machines joined by a link, tests/machines/server.py in one and this in the other.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import mptcp
import pytest
from mptcp import EventKind
from support import eventually

SERVER = os.environ.get("MPTCP_TEST_SERVER", "")  # HOST:PORT of its control connection
DATA_PORT = 5000

pytestmark = pytest.mark.skipif(not SERVER, reason="needs a second machine: .ci/matrix --two-machines")

# Both machines have these on the one link between them.
PATHS = [("10.0.1.1", "10.0.1.2"), ("10.0.2.1", "10.0.2.2")]

Tell = Callable[..., Any]


@pytest.fixture(scope="module")
def tell() -> Iterator[Tell]:
    """Has the other machine do something."""
    host, port = SERVER.rsplit(":", 1)

    def connect() -> bool:
        nonlocal control
        try:
            control = socket.create_connection((host, int(port)), timeout=120)
        except OSError:
            return False
        return True

    control: socket.socket
    assert eventually(connect, 60), "the other machine does not answer"
    with control, control.makefile("rw") as lines:

        def tell(name: str, **arguments: object) -> Any:
            print(json.dumps([name, arguments]), file=lines, flush=True)
            works, answer = json.loads(lines.readline())
            assert works, answer
            return answer

        yield tell


@pytest.fixture
def connect(tell: Tell) -> Iterator[Callable[..., mptcp.Socket]]:
    made = []

    def connect(path_manager: str, plain: bool) -> mptcp.Socket:
        mptcp.set_path_manager("userspace")
        tell("listen", path_manager=path_manager, plain=plain)
        made.append(mptcp.create_connection((PATHS[0][1], DATA_PORT), timeout=60))
        tell("accept")
        made[0].sendall(b"x")
        tell("echo", count=1)
        assert made[0].recv(1) == b"x"
        return made[0]

    yield connect
    for sock in made:
        sock.close()
    tell("close")


def test_a_server_by_this_package_accepts_what_the_client_opens(
    tell: Tell, connect: Callable[..., mptcp.Socket]
) -> None:
    sock = connect("userspace", plain=False)
    assert tell("subscribers") > 0
    opened = sock.open_subflow(*PATHS[1], backup=True, timeout=60)
    assert opened is not None
    assert (opened.backup, opened.peer_backup) == (True, False)
    assert eventually(lambda: any(there["peer_backup"] for there in tell("subflows")))
    [there] = [there for there in tell("subflows") if tuple(there["remote"]) == opened.local]
    assert tuple(there["local"]) == opened.remote
    assert (there["remote_id"], there["local_id"]) == (opened.local_id, opened.remote_id)
    assert not there["backup"]
    tell("close_subflow", remote_port=opened.local[1])
    assert eventually(lambda: len(sock.subflows()) == 1)


def test_a_server_without_a_subscription_refuses_under_the_userspace_path_manager(
    tell: Tell, connect: Callable[..., mptcp.Socket]
) -> None:
    """Our own subscription is another host's, here: it does not count."""
    sock = connect("userspace", plain=True)
    assert tell("subscribers") == 0
    with pytest.raises(mptcp.SubflowError, match="no process there is subscribed to path manager events"):
        sock.open_subflow(*PATHS[1], timeout=60)
    assert len(sock.subflows()) == 1
    sock.sendall(b"goes on")
    tell("echo", count=7)
    assert sock.recv(7) == b"goes on"


def test_a_server_without_a_subscription_accepts_under_the_in_kernel_path_manager(
    tell: Tell, connect: Callable[..., mptcp.Socket]
) -> None:
    sock = connect("kernel", plain=True)
    assert tell("subscribers") == 0
    opened = sock.open_subflow(*PATHS[1], timeout=60)
    assert opened is not None
    assert opened.local in [tuple(there["remote"]) for there in tell("subflows")]
    sock.close_subflow(opened)
    assert eventually(lambda: len(tell("subflows")) == 1)


def test_addresses_announced_and_withdrawn(tell: Tell, connect: Callable[..., mptcp.Socket]) -> None:
    sock = connect("userspace", plain=False)
    with sock.events() as events:
        number = tell("announce", address=PATHS[1][1])
        announced = next(event for event in events if event.kind == EventKind.ANNOUNCED)
        assert announced.remote is not None
        assert (announced.remote[0], announced.remote_id) == (PATHS[1][1], number)
        tell("remove", number=number)
        removed = next(event for event in events if event.kind == EventKind.REMOVED)
        assert removed.remote_id == number
