"""What is refused when policies start, and what an interrupted start leaves."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import mptcp
import pytest
from mptcp.lab import Host, Link
from mptcp.policies import Backup, FullMesh, Handover, OnlyFor, Prefer, WhenLong

TwoPaths = tuple[Host, Host, tuple[Link, Link]]


class Misspelt(mptcp.Policy):
    def on_conection(self, conn: mptcp.Connection) -> None: ...


class OfAnotherProgram(mptcp.Policy):
    def on_data(self, conn: mptcp.Connection) -> None: ...


class Allow(mptcp.Policy):
    def allow(self, conn: Any, local: Any, remote: Any) -> bool:
        return False


class CamelCase(mptcp.Policy):
    def onConnection(self, conn: mptcp.Connection) -> None: ...


class TooFew(mptcp.Policy):
    def on_subflow_lost(self, conn: mptcp.Connection) -> None: ...  # type: ignore[override]


class TooMany(mptcp.Policy):
    def on_link_up(self, event: mptcp.Event, conn: mptcp.Connection) -> None: ...  # type: ignore[override]


class NoSelf(mptcp.Policy):
    def on_closed(conn) -> None: ...  # type: ignore[no-untyped-def, override]


class Keyword(mptcp.Policy):
    def on_closed(self, conn: mptcp.Connection, *, again: bool) -> None: ...  # type: ignore[override]


class Coroutine(mptcp.Policy):
    async def on_connection(self, conn: mptcp.Connection) -> None:  # type: ignore[override]
        await asyncio.sleep(0)


class Generator(mptcp.Policy):
    def on_tick(self, conn: mptcp.Connection, subflows: list[mptcp.Subflow]) -> Iterator[None]:  # type: ignore[override]
        yield


class AsynchronousGenerator(mptcp.Policy):
    async def on_closed(self, conn: mptcp.Connection) -> AsyncIterator[None]:  # type: ignore[override]
        yield


class AsynchronousVeto(mptcp.Policy):
    async def allows(self, conn: Any, local: Any, remote: Any) -> bool:  # type: ignore[override]
        return True


class NotCallable(mptcp.Policy):
    on_closed = None  # type: ignore[assignment]


class OfTheInstance(mptcp.Policy):
    """What the runtime calls are methods of the class: this would never be called."""

    def __init__(self) -> None:
        self.on_closed = print  # type: ignore[assignment]


class NoTick(mptcp.Policy):
    tick = "1"  # type: ignore[assignment]


def refusal(client: Host, policy: mptcp.Policy, kind: type[Exception] = TypeError) -> str:
    before = client.get_path_manager()
    with pytest.raises(kind) as caught:
        client.run_policy(policy)
    assert policy._runtime is None
    assert client.get_path_manager() == before
    with client.run_policy(FullMesh()):
        pass  # the namespace is free
    return str(caught.value)


def test_misspelt_callbacks_are_refused(mptcp_two_paths: TwoPaths) -> None:
    client = mptcp_two_paths[0]
    client.set_path_manager("kernel")
    message = refusal(client, Misspelt())
    assert "Misspelt.on_conection" in message
    assert "on_connection" in message
    assert "OfAnotherProgram.on_data" in refusal(client, OfAnotherProgram())
    assert "allows" in refusal(client, Allow())
    assert "on_connection" in refusal(client, CamelCase())


def test_wrong_signatures_are_refused(mptcp_two_paths: TwoPaths) -> None:
    client = mptcp_two_paths[0]
    assert "TooFew.on_subflow_lost() must take (conn, event)" in refusal(client, TooFew())
    assert "TooMany.on_link_up() must take (event)" in refusal(client, TooMany())
    for policy in (NoSelf(), Keyword()):
        assert "on_closed() must take (conn)" in refusal(client, policy)


def test_what_cannot_be_called_as_a_callback_is_refused(mptcp_two_paths: TwoPaths) -> None:
    client = mptcp_two_paths[0]
    for policy in (Coroutine(), Generator(), AsynchronousGenerator(), AsynchronousVeto()):
        assert "must be a plain function" in refusal(client, policy), policy
    assert "on_closed" in refusal(client, NotCallable())
    assert "on_closed" in refusal(client, OfTheInstance())
    assert "tick must be a number" in refusal(client, NoTick())
    late = mptcp.Policy()
    late.tick = 0
    assert "tick must be" in refusal(client, late, ValueError)


class Wrapped(mptcp.Policy):
    """Forms that do work."""

    def __init__(self) -> None:
        self.one_of_my_own = 1

    def on_connection(self, *arguments: Any) -> None: ...

    def on_closed(self, conn: mptcp.Connection, note: str = "") -> None: ...

    on_link_up = functools.partialmethod(lambda self, word, event: None, "up")

    @staticmethod
    def on_link_down(event: mptcp.Event) -> None: ...

    @classmethod
    def on_address(cls, event: mptcp.Event) -> None: ...

    def connection_count(self) -> int:
        return len(self.connections())


def test_other_forms_of_callbacks_are_not(mptcp_two_paths: TwoPaths) -> None:
    with mptcp_two_paths[0].run_policy(Wrapped()):
        pass


def test_paths_that_do_not_exist_are_refused(mptcp_two_paths: TwoPaths) -> None:
    client, _, (first, second) = mptcp_two_paths
    interface = client.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    name = interface.splitlines()[1].split(":")[1].strip().partition("@")[0]
    address = first.address(client)
    for policy, path in (
        (Prefer(name, "eth99"), "eth99"),
        (OnlyFor("192.0.2.1", ports=[1]), "192.0.2.1"),
        (WhenLong("192.0.2.0/24", after_bytes=1), "192.0.2.0/24"),
        (Backup(address, "fd00:dead::1"), "fd00:dead::1"),
        (Handover(first, "nowhere0"), "nowhere0"),
    ):
        assert repr(path) in refusal(client, policy, ValueError)
    # One that is down is there.
    second.down()
    client.run(["ip", "link", "add", "dummy7", "type", "veth"], check=True)
    for path in (name, address, f"{address}/32", first, second, second.address(client), "dummy7"):
        with client.run_policy(Prefer(path)):
            pass


def test_a_policy_whose_start_was_interrupted_starts_again(
    mptcp_two_paths: TwoPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of a start in turn."""
    from mptcp._policy import _callbacks, _runtime

    client = mptcp_two_paths[0]
    before = client.get_path_manager()
    steps = [(_runtime.Runtime, "_read_addresses"), (_runtime.Runtime, "_catch_up"), (_callbacks.Callbacks, "start")]
    for of, name in steps:
        policy = FullMesh()
        with monkeypatch.context() as patch:

            def interrupt(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(of, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.run_policy(policy)
        assert client.get_path_manager() == before
        with client.run_policy(policy):
            assert policy._runtime is not None
        assert policy._runtime is None


def test_the_commands_say_what_is_wrong_in_a_line(mptcp_two_paths: TwoPaths, tmp_path: Path) -> None:
    file = tmp_path / "policy.py"
    file.write_text("import mptcp\nclass Mine(mptcp.Policy):\n    def on_conection(self, conn): ...\n")
    client = mptcp_two_paths[0]
    command = [sys.executable, "-m", "mptcp"]
    for words in (
        ["policy", str(file)],
        ["policy", "--builtin", "prefer:eth99"],
        ["run", "--policy", str(file), "true"],
    ):
        done = client.run([*command, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.startswith(f"mptcp {words[0]}: ")
        assert done.stderr.count("\n") == 1


def test_policies_that_nobody_holds_end(mptcp_two_paths: TwoPaths) -> None:
    """As where an interrupt comes between their start and the with-block."""
    client = mptcp_two_paths[0]
    client.set_path_manager("kernel")
    policy = FullMesh()
    client.run_policy(policy)
    assert policy._runtime is None
    assert client.get_path_manager() == "kernel"
