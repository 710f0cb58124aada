"""What policies decide and how it ends: a log record for each decision, at level INFO of "mptcp.policy"."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import _core
from .._address import endpoint
from .._core import Event, Subflow

if TYPE_CHECKING:
    from ._policy import Policy

LOGGER = logging.getLogger("mptcp.policy")

Ends = tuple[tuple[Any, ...], tuple[Any, ...]]


class Decision:
    """Something that a policy asked for, until its end is known."""

    def __init__(self, journal: Journal, record: dict[str, Any], since: float) -> None:
        self._journal = journal
        self._record = record
        self._since = since
        self._is_pending = True

    def ends(self, outcome: str, number: int | None = None, **more: Any) -> None:
        """Write how it ended; what is said of it later has no effect."""
        with self._journal.lock:
            if not self._is_pending:
                return
            self._is_pending = False
            self._journal.pending.discard(self)
        self._record["outcome"] = outcome
        self._record["seconds"] = round(self._journal.now() - self._since, 6)
        self._record["errno"] = number or None
        self._record["error"] = os.strerror(number) if number else None
        self._record.update(more)
        LOGGER.info("%s", _line(self._record), extra={"decision": self._record})

    def fails(self, error: BaseException) -> None:
        """Write that it failed, and why."""
        number = error.errno if isinstance(error, OSError) else None
        self.ends("failed", number, error=(isinstance(error, OSError) and error.strerror) or str(error))

    def fails_by(self, event: Event) -> None:
        """Write that a subflow was not accepted."""
        more: dict[str, Any] = {} if event.reset_reason is None else {"reset_reason": event.reset_reason}
        if not event.error:
            more["error"] = "refused by the peer, or not a listener of this connection"
        self.ends("failed", event.error, **more)

    @property
    def token(self) -> int:
        token: int = self._record["token"]
        return token


class Journal:
    """The decisions of the policies of one namespace."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.lock = threading.Lock()
        self.pending: set[Decision] = set()
        self._changes: dict[tuple[int, Any], Decision] = {}
        # In each thread that calls policies: which method of which it called last, and with what.
        self._called = threading.local()

    @classmethod
    def wanted(cls, now: Callable[[], float]) -> Journal | None:
        """Return a journal if anybody reads it."""
        return cls(now) if LOGGER.isEnabledFor(logging.INFO) else None

    def calls(self, policy: Policy, method: str, arguments: tuple[Any, ...]) -> None:
        """A method of a policy is about to be called by this thread."""
        self._called.by = (
            type(policy).__name__,
            method,
            next((one for one in arguments if isinstance(one, Event)), None),
        )

    def returned(self) -> None:
        """The method has returned."""
        self._called.by = None

    def decides(self, what: str, token: int, *, because: str | None = None, **details: Any) -> Decision:
        """Begin a decision; without ``because`` it is of the method that this thread has called."""
        policy, method, event = getattr(self._called, "by", None) or (None, because, None)
        record: dict[str, Any] = {
            "time": round(time.time(), 6),
            "time_ns": time.monotonic_ns(),
            "policy": policy if because is None else None,
            "because": because or method,
            "event": None if event is None or because is not None else {**event.asdict(), "kind": event.kind.name},
            "token": token,
            "decision": what,
            **details,
        }
        decision = Decision(self, record, self.now())
        with self.lock:
            self.pending.add(decision)
        return decision

    @contextlib.contextmanager
    def decided(self, what: str, token: int, **details: Any) -> Iterator[dict[str, Any]]:
        """Record what is done in the block; ``outcome`` and more can be put into the mapping."""
        decision = self.decides(what, token, **details)
        more: dict[str, Any] = {"outcome": "done"}
        try:
            yield more
        except BaseException as error:
            decision.fails(error)
            raise
        decision.ends(more.pop("outcome"), **more)

    # What is reported later: of a connection, by the number of a command or by a subflow's ends

    def keep(self, token: int, key: int | Ends, decision: Decision) -> None:
        with self.lock:
            self._changes[token, key] = decision

    def take(self, token: int, key: int | Ends) -> Decision | None:
        with self.lock:
            return self._changes.pop((token, key), None)

    def connection_ended(self, token: int) -> None:
        """Nothing more will be reported of a connection."""
        self._end("the connection has ended", lambda decision: decision.token == token)

    def policies_ended(self) -> None:
        """Nothing more will be reported at all."""
        self._end("not known: the policies have ended", lambda decision: True)

    def _end(self, outcome: str, concerns: Callable[[Decision], bool]) -> None:
        with self.lock:
            left = [decision for decision in self.pending if concerns(decision)]
            self._changes = {key: decision for key, decision in self._changes.items() if not concerns(decision)}
        for decision in left:
            decision.ends(outcome)


def options_by_name(options: Any) -> list[dict[str, Any]]:
    """Return what set_subflow_options() was asked for, by the options' names; what it is not is left out."""
    found = []
    for subflow, values in options.items() if isinstance(options, Mapping) else ():
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(subflow, Subflow) and isinstance(key, tuple) and len(key) == 2:
                name = _core.option_name(*key) if all(isinstance(one, int) for one in key) else str(key)
                found.append({"local": subflow.local, "remote": subflow.remote, "option": name, "value": _value(value)})
    return found


def _value(value: Any) -> int | str:
    if isinstance(value, int):
        return value
    raw = bytes(value) if isinstance(value, bytes | bytearray | memoryview) else str(value).encode()
    text = raw.rstrip(b"\0").decode("ascii", "replace")
    if raw and text.isprintable() and text.isascii() and text:
        return text  # the name of a congestion control
    return int.from_bytes(raw, sys.byteorder) if len(raw) <= 8 else raw.hex()


def _line(record: dict[str, Any]) -> str:
    """A decision in words."""
    who = f"{record['policy']}.{record['because']}()" if record["policy"] else (record["because"] or "another thread")
    words = [f"{who}{_cause(record['event'])}:", str(record["token"]), record["decision"]]
    if (lost := record.get("lost")) is not None:
        words.append(f"when {lost} is lost: open")
    ends = [_end(end) for end in (record.get("local"), record.get("remote")) if end]
    words.extend([" -> ".join(ends)] if ends else [])
    words.extend(f"{one['option']}={one['value']} on {_ends(one)}" for one in record.get("options", ()))
    if (backup := record.get("backup")) is not None and (backup or record["decision"] == "backup"):
        words.append("backup" if record["decision"] != "backup" else "on" if backup else "off")
    if record.get("interface"):
        words.append(f"bound to {record['interface']}")
    if record.get("address_id") is not None:
        words.append(f"id {record['address_id']}")
    words[-1] += ":"
    words.append(f"{record['outcome']} in {record['seconds'] * 1e3:.1f} ms")
    reason = record["error"] and f"{record['error']}{_symbol(record['errno'])}"
    words[-1] += f": {reason}" if reason else ""
    return " ".join(words)


def _cause(event: dict[str, Any] | None) -> str:
    if event is None:
        return ""
    told = [event["interface"]] if event["interface"] else []
    told += [_ends(event)] if event["local"] and event["remote"] else []
    told += [endpoint(end) for end in (event["local"], event["remote"]) if end and not (told or event["interface"])]
    told += [os.strerror(event["error"])] if event["error"] else []
    return f" after {event['kind']}{' ' if told else ''}{', '.join(told)}"


def _ends(of: dict[str, Any]) -> str:
    return f"{endpoint(of['local'])} -> {endpoint(of['remote'])}"


def _end(end: tuple[Any, ...]) -> str:
    return endpoint(end) if end[1] else str(end[0])


def _symbol(number: int | None) -> str:
    return f" ({errno.errorcode[number]})" if number is not None and number in errno.errorcode else ""
