"""The types of a trace's arrays: docs/traces.md describes each column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .._rows import Rows

PACKETS = np.dtype(
    [
        ("time_ns", "i8"),
        ("capture", "i4"),
        ("token", "u4"),
        ("subflow", "i4"),
        ("direction", "i1"),
        ("dsn", "i8"),
        ("length", "i4"),
        ("retransmitted", "?"),
        ("reinjected", "?"),
        ("data_acked_ns", "i8"),
        ("data_delivered_ns", "i8"),
        ("received_ns", "i8"),
        ("connection", "i4"),
        ("sequence", "u4"),
    ],
    align=True,
)


def _both(*columns: tuple[str, str]) -> list[tuple[str, str]]:
    """Return a column for each direction, or for each side."""
    return [(f"{name}_{side}", kind) for name, kind in columns for side in (0, 1)]


CONNECTIONS = np.dtype(
    [
        ("token", "u4"),
        ("peer_token", "u4"),
        ("version", "i1"),
        ("complete", "?"),
        ("checksum", "?"),
        ("fallback", "?"),
        ("subflows", "i4"),
        ("start_ns", "i8"),
        ("end_ns", "i8"),
        *_both(
            ("idsn", "u8"),
            ("bytes", "i8"),
            ("reinjected", "i8"),
            ("data_acked", "i8"),
            ("missing", "i8"),
            ("data_fin_ns", "i8"),
        ),
    ],
    align=True,
)

SUBFLOWS = np.dtype(
    [
        ("token", "u4"),
        ("connection", "i4"),
        *_both(("address", "U39"), ("port", "u2"), ("address_id", "i2"), ("backup", "?")),
        ("initial", "?"),
        ("initiator", "i1"),
        ("complete", "?"),
        ("reset_reason", "i2"),
        ("syn_ns", "i8"),
        ("synack_ns", "i8"),
        ("ack_ns", "i8"),
        ("end_ns", "i8"),
        ("reset_ns", "i8"),
        *_both(("fin_ns", "i8"), ("capture", "i4"), ("received", "?")),
        *_both(
            ("segments", "i8"),
            ("bytes", "i8"),
            ("retransmitted", "i8"),
            ("reinjected", "i8"),
            ("unmapped", "i8"),
            ("missing", "i8"),
            ("checksums", "i8"),
            ("checksum_errors", "i8"),
            ("hmacs", "i8"),
            ("hmac_errors", "i8"),
        ),
    ],
    align=True,
)


_PLACE = [("time_ns", "i8"), ("connection", "i4"), ("subflow", "i4"), ("direction", "i1")]

CANDIDATES = np.dtype(
    [
        *_PLACE,
        ("chosen", "?"),
        ("backup", "?"),
        ("stale", "?"),
        ("avg_pacing_rate", "u8"),
        ("pacing_rate", "u8"),
        ("wmem_queued", "u4"),
        ("snd_wnd", "u4"),
        ("snd_cwnd", "u4"),
        ("srtt_us", "u4"),
        ("packets_out", "u4"),
    ],
    align=True,
)

ACKS = np.dtype(
    [
        *_PLACE,
        ("snd_una", "u4"),
        ("snd_nxt", "u4"),
        ("rcv_nxt", "u4"),
        ("snd_wnd", "u4"),
        ("snd_cwnd", "u4"),
        ("snd_ssthresh", "u4"),
        ("srtt_us", "u4"),
        ("packets_out", "u4"),
        ("lost_out", "u4"),
        ("retrans_out", "u4"),
        ("total_retrans", "u4"),
    ],
    align=True,
)


def array(columns: Mapping[str, Any], dtype: np.dtype[np.void]) -> Rows:
    """Return a structured array of columns."""
    assert dtype.names is not None
    rows = np.empty(len(columns[dtype.names[0]]), dtype)
    for name in dtype.names:
        rows[name] = columns[name]
    return rows
