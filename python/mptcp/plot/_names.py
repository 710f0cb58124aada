"""What subflows are called: by their link, by an address, by their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

End: TypeAlias = tuple[Any, ...]


class Name(NamedTuple):
    """What a subflow is called, and what that is from."""

    label: str
    path: str | None
    local: End | None
    remote: End | None


def of(metadata: dict[str, Any], cookies: Sequence[int], tokens: Sequence[int], ids: Sequence[int]) -> list[Name]:
    """Return the label, the path, the local and the remote end of each subflow.

    The path is the link's name, or the address that tells the subflows apart: the local one, unless all have the same,
    as at a host that accepts on one address. What is not in the metadata is None.
    """
    entries = {entry["cookie"]: entry for entry in metadata.get("subflows", ())}
    known = [entries.get(cookie) for cookie in cookies]
    ends = [None if entry is None else (tuple(entry["local"]), tuple(entry["remote"])) for entry in known]
    side = _telling(ends)
    links = _links(metadata)
    paths = [None if each is None else next(_link_of(each, links), str(each[side][0])) for each in ends]
    ports = [None if each is None else int(each[_telling_port(ends)][1]) for each in ends]
    if len(set(tokens)) > 1:
        ids = [-1] * len(ids)  # they are unique only within a connection
    count = Counter(paths)
    labels = []
    for path, port, id, cookie in zip(paths, ports, ids, cookies, strict=True):
        if path is None:
            labels.append(f"subflow {id}" if id >= 0 else f"cookie {cookie:x}")
        elif count[path] == 1:
            labels.append(path)
        elif id >= 0:
            labels.append(f"{path} ({id})")
        else:
            labels.append(f"[{path}]:{port}" if ":" in path else f"{path}:{port}")
    return [Name(label, path, *(each or (None, None))) for label, path, each in zip(labels, paths, ends, strict=True)]


def _telling(ends: Sequence[tuple[End, End] | None]) -> int:
    """Return which end has the address that tells subflows apart: 0 is the local one."""
    local, remote = ({each[side][0] for each in ends if each is not None} for side in (0, 1))
    return int(len(local) == 1 and len(remote) > 1)


def _telling_port(ends: Sequence[tuple[End, End] | None]) -> int:
    """Return which end has the port that tells subflows apart: an accepting host's is the same in all."""
    local, remote = ({each[side][1] for each in ends if each is not None} for side in (0, 1))
    return int(len(local) < len(remote))


def _links(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the names of the links that have one, by the addresses of their first hosts.

    Labs have the same addresses, so with several of them the result is empty.
    """
    labs = metadata.get("labs", ())
    if len(labs) != 1:
        return {}
    links = [link for link in labs[0]["links"] if link.get("name") is not None]
    return {address: link["name"] for link in links for address in link["first_addresses"]}


def _link_of(ends: tuple[End, End], links: dict[str, str]) -> Iterator[str]:
    for end in ends:
        if end[0] in links:
            yield links[end[0]]
