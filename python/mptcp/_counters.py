"""The kernel's MPTcpExt counters, read from the text of /proc/net/netstat."""

from __future__ import annotations


def parse(text: str) -> dict[str, int]:
    """Return the MPTcpExt counters in ``text``, the contents of a /proc/net/netstat.

    That file holds pairs of lines, ``MPTcpExt: name name ...`` and then ``MPTcpExt: value value ...``.
    A kernel without Multipath TCP has no such lines: the result is then empty.
    """
    names: list[str] | None = None
    for line in text.splitlines():
        prefix, _, rest = line.partition(":")
        if prefix != "MPTcpExt":
            continue
        if names is None:
            names = rest.split()
        else:
            return {name: int(value) for name, value in zip(names, rest.split(), strict=True)}
    return {}
