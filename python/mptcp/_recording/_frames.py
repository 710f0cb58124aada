"""Recordings as pandas DataFrames: the arrays' columns, and what the metadata says of each row's subflow."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from .._address import endpoint
from .._rows import names

if TYPE_CHECKING:
    from .._rows import Recorded, Rows


def samples(recording: Recorded) -> pandas.DataFrame:
    rows = recording.samples
    places = _Places(recording.metadata)
    known = {each["cookie"]: each for each in recording.metadata.get("subflows", ())}
    columns = _columns(rows, _start(recording))
    cookies, codes = np.unique(rows["cookie"], return_inverse=True)
    ends = [known.get(cookie) for cookie in cookies.tolist()]
    for name, values in places.of_all([(each["local"], each["remote"]) if each else None for each in ends]).items():
        columns[name] = _categorical(values, codes)
    # Beside the cookie, whose meaning they are.
    order = list(columns)
    told = order[-len(_PLACE) :]
    at = order.index("cookie") + 1
    return pandas.DataFrame({name: columns[name] for name in [*order[:at], *told, *order[at : -len(told)]]}, copy=False)


def connections(recording: Recorded) -> pandas.DataFrame:
    return pandas.DataFrame(_columns(recording.connections, _start(recording)), copy=False)


def events(recording: Recorded) -> pandas.DataFrame:
    told = [event.asdict() for event in recording.events]
    fields = _EVENT if not told else tuple(told[0])
    start = _start(recording)
    columns: dict[str, Any] = {
        "time_s": np.array([(event["time_ns"] - start) / 1e9 for event in told], dtype=np.float64),
        "time_ns": np.array([event["time_ns"] for event in told], dtype=np.int64),
        "kind": pandas.Categorical([event["kind"].value for event in told]),
    }
    codes = np.arange(len(told))
    both = [(event["local"], event["remote"]) if event["local"] or event["remote"] else None for event in told]
    for name, values in _Places(recording.metadata).of_all(both).items():
        columns[name] = _categorical(values, codes)
    for name in fields:
        if name not in columns:
            columns[name] = pandas.array([event[name] for event in told], dtype=_EVENT_TYPES.get(name, "Int64"))
    return pandas.DataFrame(columns)


_EVENT = (
    "token",
    "local_id",
    "remote_id",
    "backup",
    "error",
    "reset_reason",
    "server_side",
    "deny_join_initial",
    "interface",
)
# The others are integers that may be missing.
_EVENT_TYPES = {name: "boolean" for name in ("backup", "server_side", "deny_join_initial")} | {"interface": "string"}

_PLACE = ("local", "remote", "link", "host", "peer")


def _start(recording: Recorded) -> int:
    """Return the CLOCK_MONOTONIC, in nanoseconds, that time_s counts from."""
    start = recording.metadata.get("start_ns")
    if start is not None:
        return int(start)
    first = [int(rows["time_ns"].min()) for rows in (recording.samples, recording.connections) if len(rows)]
    return min(first, default=0)


def _columns(rows: Rows, start: int) -> dict[str, Any]:
    return {"time_s": (rows["time_ns"] - start) / 1e9, **{name: rows[name] for name in names(rows)}}


def _categorical(values: Sequence[str | None], codes: np.ndarray[Any, Any]) -> pandas.Categorical:
    """Return a column of ``values[code]`` for each code; None is a missing value."""
    categories = sorted({value for value in values if value is not None})
    index = {value: number for number, value in enumerate(categories)}
    of_value = np.array([-1 if value is None else index[value] for value in values] or [-1], dtype=np.int32)
    return pandas.Categorical.from_codes(of_value[codes], categories=pandas.Index(categories, dtype=object))


class _Places:
    """The links and hosts of the labs that were open, by addresses."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self._labs = [
            (
                {_plain(address): name for name, host in lab["hosts"].items() for address in host["addresses"]},
                {_plain(address): link["name"] for link in lab["links"] for address in link.get("first_addresses", ())},
            )
            for lab in metadata.get("labs") or ()
        ]

    def of_all(self, ends: Iterable[tuple[Any, Any] | None]) -> dict[str, list[str | None]]:
        """Return the columns of _PLACE for the local and remote ends of several sockets; None: of no known socket."""
        rows = [self._of(each) for each in ends]
        return {name: [row[number] for row in rows] for number, name in enumerate(_PLACE)}

    def _of(self, ends: tuple[Any, Any] | None) -> tuple[str | None, ...]:
        if ends is None:
            return (None,) * len(_PLACE)
        texts = [_written(end) for end in ends]
        addresses = [_plain(end[0]) if end else None for end in ends]
        # Two labs may have the same addresses: then it is unknown which is meant.
        labs = [lab for lab in self._labs if any(address in lab[0] for address in addresses if address)]
        if len(labs) != 1:
            return (*texts, None, None, None)
        hosts, links = labs[0]
        link = next((links[address] for address in addresses if address in links), None)
        return (*texts, link, *(hosts.get(address) if address else None for address in addresses))


def _written(end: Sequence[Any] | None) -> str | None:
    return endpoint((_plain(end[0]), end[1])) if end else None


def _plain(address: str) -> str:
    """Return an address without a scope, and an IPv4 address that is written as IPv6 as IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
