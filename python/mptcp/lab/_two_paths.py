"""The lab that most experiments need: a client and a server with two links between them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from mptcp.lab import _link
from mptcp.lab._host import Host
from mptcp.lab._lab import Lab
from mptcp.lab._link import Link


@contextlib.contextmanager
def two_paths(
    rate: _link.Rates | Sequence[_link.Rates] = ("20mbit", "10mbit"),
    delay: _link.Times | Sequence[_link.Times] = None,
    *,
    names: Sequence[str | None] = (None, None),
    server_addresses: int = 2,
    seed: int | None = None,
    **link_arguments: Any,
) -> Iterator[tuple[Host, Host, tuple[Link, Link]]]:
    """Open a lab of a client and a server with two links, 10.0.1.1-10.0.1.2 and 10.0.2.1-10.0.2.2, for a with-block.

    Use it as ``with two_paths() as (client, server, paths): ...``. ``rate`` and ``delay`` are one value for both links
    or one for each, each of which can be a pair, for what the client and for what the server sends. ``names`` are the
    links' names. With ``server_addresses=1`` the server has 10.0.1.2 on both links. All other arguments are those of
    :meth:`Lab.link`, for both links; ``seed`` is that of :class:`Lab`.

    Privilege and errors are those of :class:`Lab` and :meth:`Lab.link`.
    """
    if "name" in link_arguments:
        raise TypeError("two_paths() has two links: pass names, one for each, instead of name")
    rates, delays = _for_each(rate, "rate"), _for_each(delay, "delay")
    if isinstance(names, str) or len(names) != 2:
        raise ValueError(f"names must be two names, one for each link, not {names!r}")
    if isinstance(server_addresses, bool) or server_addresses not in (1, 2):
        raise ValueError(f"server_addresses must be 1 or 2, not {server_addresses!r}")
    with Lab(seed=seed) as lab:
        client, server = lab.host("client"), lab.host("server")
        first = lab.link(client, server, name=names[0], rate=rates[0], delay=delays[0], **link_arguments)
        second = lab._link(
            client,
            server,
            name=names[1],
            rate=rates[1],
            delay=delays[1],
            second_address_of=first if server_addresses == 1 else None,
            **link_arguments,
        )
        yield client, server, (first, second)


def _for_each(value: Any, what: str) -> Sequence[Any]:
    if value is None or isinstance(value, str | int | float):
        return (value, value)
    if len(value) != 2:
        raise ValueError(f"{what} must be one value for both paths or two, one for each, not {len(value)}")
    return list(value)
