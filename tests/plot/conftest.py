"""Two recordings of one transfer, and figures that do not outlive a test."""

from __future__ import annotations

from collections.abc import Iterator

import mptcp
import pytest
from mptcp.lab import Transfer, two_paths
from support import eventually

matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")
matplotlib.use("agg")


@pytest.fixture(scope="session")
def both_ends() -> tuple[mptcp.Recording, mptcp.Recording]:
    """Two paths, of which the second is opened and the first closed in mid-transfer: the sender's and the receiver's.

    The receiver accepts all on one address.
    """
    with (
        two_paths(server_addresses=1) as (client, server, (first, second)),
        Transfer(client, server, [first]) as transfer,
        mptcp.Recorder(transfer.sock) as near,
        mptcp.Recorder(transfer.peer) as far,
    ):
        sock = transfer.sock
        assert eventually(lambda: transfer.received > 1 << 20)
        opened = sock.open_subflow(second.address(client), first.address(server))
        assert eventually(lambda: (of(sock, opened).tcp_info.bytes_acked or 0) > 1 << 20, 20)
        sock.close_subflow(1)
        assert eventually(lambda: len(sock.subflows()) == 1)
        received = transfer.received
        assert eventually(lambda: transfer.received > received + (1 << 19), 20)
    one, other = (mptcp.Recording(rec.samples, rec.connections, rec.events, rec.metadata) for rec in (near, far))
    return one, other


@pytest.fixture(scope="session")
def recording(both_ends: tuple[mptcp.Recording, mptcp.Recording]) -> mptcp.Recording:
    return both_ends[0]


@pytest.fixture(scope="session")
def receivers(both_ends: tuple[mptcp.Recording, mptcp.Recording]) -> mptcp.Recording:
    return both_ends[1]


def of(sock: mptcp.Socket, wanted: mptcp.Subflow) -> mptcp.Subflow:
    (found,) = [subflow for subflow in sock.subflows() if subflow == wanted]
    return found


@pytest.fixture(autouse=True)
def _no_figure_left() -> Iterator[None]:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
