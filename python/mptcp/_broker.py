"""The rules of ``mptcp broker``: what it does for whom, from a TOML file."""

from __future__ import annotations

import grp
import ipaddress
import pwd
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Rule = dict[str, Any]

DEFAULT: Rule = {
    "uids": [],
    "gids": [],
    "allow": True,
    "own": True,
    "others": False,
    "path_manager": True,
    "options": True,
    "remotes": [],
    "locals": [],
    "interfaces": [],
    "clients": 64,
    "opens_per_second": 100,
    "holds_per_second": 20,
    "hold": 0,
    "announced": 8,
}
"""The rule without a file: everybody may change connections of his own, towards addresses of the peer."""

# The keys of a file, apart from users and groups.
_BOOLEANS = ("allow", "own", "others", "path_manager", "options")
_COUNTS = {
    "clients": (1, 1024),
    "opens_per_second": (1, 100_000),
    "holds_per_second": (1, 50),
    "hold": (0, 4_000_000),
    "announced": (0, 255),
}
_NETWORKS = {"remotes", "locals"}


def read_rules(path: Path) -> list[Rule]:
    """Return the rules of a file. ValueError, with the file's name and the rule's number, for one that is wrong."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if unknown := content.keys() - {"rule"}:
        raise ValueError(f"{path}: there must be [[rule]] tables only, not {', '.join(sorted(unknown))}")
    tables = content.get("rule", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: there must be at least one [[rule]]")
    rules = []
    for number, table in enumerate(tables, 1):
        try:
            rules.append(_rule(table))
        except ValueError as error:
            raise ValueError(f"{path}: rule {number}: {error}") from None
    return rules


def _rule(table: Mapping[str, Any]) -> Rule:
    known = {"users", "groups", "interfaces", *_BOOLEANS, *_COUNTS, *_NETWORKS}
    if unknown := sorted(table.keys() - known):
        raise ValueError(f"there is no {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    rule = dict(DEFAULT)
    rule["uids"] = [_id(one, "users", lambda name: pwd.getpwnam(name).pw_uid) for one in _list(table, "users")]
    rule["gids"] = [_id(one, "groups", lambda name: grp.getgrnam(name).gr_gid) for one in _list(table, "groups")]
    for key in _BOOLEANS:
        if not isinstance(table.get(key, True), bool):
            raise ValueError(f"{key} must be true or false, not {table[key]!r}")
        rule[key] = table.get(key, rule[key])
    for key, (least, most) in _COUNTS.items():
        value = table.get(key, rule[key])
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{key} must be from {least} to {most}, not {value!r}")
        rule[key] = value
    for key in _NETWORKS:
        rule[key] = [str(_network(one, key)) for one in _list(table, key)]
    rule["interfaces"] = [_interface(one) for one in _list(table, "interfaces")]
    return rule


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list, not {value!r}")
    if key in table and not value and key in ("users", "groups"):
        raise ValueError(f"{key} must not be empty: leave it out for everybody")
    return value


def _id(value: object, key: str, look_up: Callable[[str], int]) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32 - 1:
        return value
    if isinstance(value, str):
        try:
            return look_up(value)
        except KeyError:
            raise ValueError(f"{key}: there is no {value!r} on this host") from None
    raise ValueError(f"{key} must be names or numbers, not {value!r}")


def _network(value: object, key: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        if isinstance(value, str):
            return ipaddress.ip_network(value)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    raise ValueError(f"{key} must be addresses or networks such as '10.0.0.0/8', not {value!r}")


def _interface(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError(f"interfaces must be names, not {value!r}")
