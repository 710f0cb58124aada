"""Every public name says what it is where users look: help(), and Shift-Tab in a notebook."""

from __future__ import annotations

import ast
import enum
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mptcp
import mptcp.aio
import mptcp.enhanced_api
import mptcp.lab
import mptcp.measures
import mptcp.plot
import mptcp.policies
import pytest

MODULES: tuple[ModuleType, ...] = (
    mptcp,
    mptcp.aio,
    mptcp.enhanced_api,
    mptcp.measures,
    mptcp.plot,
    mptcp.lab,
    mptcp.policies,
)

FEWEST_WORDS = 3
# Words that say nothing of what is documented.
EMPTY_WORDS = {"a", "an", "the", "of", "this", "its", "return", "returns", "get", "gets", "set", "sets", "is", "to"}
# Names of quantities; each has a unit.
QUANTITY = re.compile(
    r"^(?!is_|total_rto$|total_rto_recoveries$|delivery_rate_app_limited$)(?:.*(^|_)(age|ato|bytes|cwnd|delay|delivery_rate|duration|interval|jitter|limited|mss|pacing_rate|rate|rto|rtt|rttvar"
    r"|seconds|size|space|ssthresh|tick|time|timeout|window|wnd)($|_)|.*_ns$|last_)"
)
UNITS = re.compile(
    r"\b((nano|micro|milli)?seconds?|ns|ms|\d+ s|bits?|bytes?|[kmg]?bit/s|segments?|inches|percent)\b"
    r"|^unused by the kernel"
)


def documented(name: str, thing: object) -> bool:
    """Whether help() shows a docstring that is its own. A plain value shows that of its type."""
    return inspect.isroutine(thing) or isinstance(thing, type | property | enum.Enum) or inspect.isdatadescriptor(thing)


def public() -> Iterator[tuple[str, str, object]]:
    """The path of every public name, the name itself, and what it is."""
    for module in MODULES:
        for name in module.__all__:
            thing = getattr(module, name)
            if isinstance(thing, type):
                yield f"{module.__name__}.{name}", name, thing
                for member, value in members(thing):
                    yield f"{module.__name__}.{name}.{member}", member, value
            elif documented(name, thing):
                yield f"{module.__name__}.{name}", name, thing


def members(cls: type) -> Iterator[tuple[str, object]]:
    """What the package's own classes define, without what others' classes do."""
    found: dict[str, object] = {}
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "mptcp":
            for name, value in vars(base).items():
                found.setdefault(name, value)
    if issubclass(cls, enum.Enum):
        found.update(cls.__members__)
    for name, value in found.items():
        if not name.startswith("_") and documented(name, value):
            yield name, inspect.unwrap(value.__func__) if isinstance(value, classmethod | staticmethod) else value


THINGS = sorted(public(), key=lambda each: each[0])


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z0-9]+", text.lower())


def lacks(name: str, text: str | None) -> str | None:
    """What a docstring lacks, None if nothing."""
    if not text or not text.strip():
        return "has no docstring"
    first = text.strip().splitlines()[0]
    if re.match(r"Alias for field number|Initialize self|Create and return a new object", first):
        return "has Python's own docstring"
    said = words(text)
    if len(said) < FEWEST_WORDS:
        return f"says in fewer than {FEWEST_WORDS} words: {text!r}"
    restated = set(words(name.replace("_", " "))) | EMPTY_WORDS
    if all(word in restated or word.rstrip("s") in restated for word in said):
        return f"restates its name: {text!r}"
    return None


@pytest.mark.parametrize(("path", "name", "thing"), THINGS, ids=[path for path, _, _ in THINGS])
def test_a_public_name_is_documented(path: str, name: str, thing: Any) -> None:
    text = inspect.getdoc(thing)
    assert (lack := lacks(name, text)) is None, f"{path} {lack}"
    assert not isinstance(thing, enum.Enum) or text != inspect.getdoc(type(thing)), f"{path} has its class's docstring"
    if isinstance(thing, property) or inspect.isgetsetdescriptor(thing):
        needs_unit = QUANTITY.search(name)
        assert not needs_unit or UNITS.search(str(text).lower()), f"{path} has no unit: {text!r}"


def arguments() -> Iterator[tuple[str, str, str]]:
    """The path, an argument that is a quantity, and the docstring, of what can be called."""
    for path, name, thing in THINGS:
        call: Any = thing
        text = inspect.getdoc(thing) or ""
        if isinstance(thing, type):
            call = thing.__init__  # type: ignore[misc]
            text += call.__doc__ or ""
        if not inspect.isfunction(call) or name.startswith("on_"):
            continue
        for argument in inspect.signature(call).parameters:
            if QUANTITY.search(argument):
                yield path, argument, text


ARGUMENTS = list(arguments())


@pytest.mark.parametrize(("path", "argument", "text"), ARGUMENTS, ids=[f"{path}-{name}" for path, name, _ in ARGUMENTS])
def test_an_argument_that_is_a_quantity_has_a_unit(path: str, argument: str, text: str) -> None:
    # "As Socket.open_subflow", "see :meth:`Link.set`", "are those of close()".
    elsewhere = re.search(r"\b(as|see|of|for)\s+(:meth:)?\W{0,2}(\w+\.\w+|\w+\(\))", text, re.IGNORECASE)
    assert UNITS.search(text.lower()) or elsewhere, f"{path}({argument}=) has no unit"


# The docstrings of native classes are written twice, in src/py for help() and in the stub for editors.

STUB = Path(mptcp.__file__).parent / "_core.pyi"
NATIVE = ("Event", "Info", "Subflow", "TcpInfo")


def stub() -> Iterator[tuple[str, str, str | None]]:
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in NATIVE:
            yield node.name, "", ast.get_docstring(node)
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    text = ast.get_docstring(member)
                    if text is not None or not any(ast.unparse(each) == "overload" for each in member.decorator_list):
                        yield node.name, member.name, text


@pytest.mark.parametrize(("cls", "member", "text"), list(stub()))
def test_the_stub_says_the_same(cls: str, member: str, text: str | None) -> None:
    thing = getattr(mptcp, cls)
    told = getattr(thing, member).__doc__ if member else thing.__doc__
    assert " ".join((told or "").split()) == " ".join((text or "").split())


def test_what_lacks_is_found() -> None:
    """The definition itself."""
    assert lacks("close", None) == "has no docstring"
    assert lacks("close", " ") == "has no docstring"
    assert lacks("address", "Alias for field number 0") == "has Python's own docstring"
    assert "fewer than" in str(lacks("close", "Closes it."))
    assert "restates" in str(lacks("local_address", "The local address of this."))
    assert "restates" in str(lacks("subflows", "Returns the subflows."))
    assert lacks("close", "Close the listener and everything that was opened through it.") is None
    assert QUANTITY.search("min_rtt")
    assert QUANTITY.search("last_data_sent")
    assert QUANTITY.search("time_ns")
    assert not QUANTITY.search("timestamps")
    assert not UNITS.search("the smoothed round trip")
