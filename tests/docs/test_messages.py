"""A reader who searches the site for an error's words finds them on the page of messages."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import mptcp
import mptcp.enhanced_api
import mptcp.policies
import pytest
from mptcp import _core

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """docs/site/messages.py."""
    if not (ROOT / "src").exists():
        pytest.skip("needs a checkout: src/ and python/")
    specification = importlib.util.spec_from_file_location("messages", ROOT / "docs" / "site" / "messages.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def unconnected() -> None:
    with mptcp.Socket() as sock:
        sock.open_subflow("127.0.0.1")


# Of the core, of the binding and of Python, about several subjects.
RAISERS: list[Callable[[], object]] = [
    unconnected,
    lambda: mptcp.Socket("family"),  # type: ignore[arg-type]
    lambda: mptcp.Socket(path_manager="none"),  # type: ignore[arg-type]
    lambda: mptcp.TcpInfo(rtt=-1),
    lambda: mptcp.TcpInfo(speed=1),
    lambda: mptcp.read_trace(__file__),
    lambda: mptcp.load(__file__),
    lambda: mptcp.policies.WhenLong("10.0.2.1", after_bytes=-1),
    lambda: mptcp.enhanced_api.getsockopt(0, 1, b""),  # type: ignore[arg-type]
    lambda: _core.LinkTrace(b"no\n"),
]


@pytest.mark.parametrize("call", RAISERS)
def test_the_words_of_an_error_are_on_the_page(site: ModuleType, call: Callable[[], object]) -> None:
    with pytest.raises((OSError, ValueError, TypeError)) as raised:
        call()
    text = raised.value.strerror if isinstance(raised.value, OSError) else str(raised.value)
    found = [message for group in site.messages() for message in group if site.pattern(message).search(text)]
    assert [message for message in found if len(message.replace("...", "").split()) >= 3], text


def test_every_subject_has_messages_and_its_page_exists(site: ModuleType) -> None:
    for (title, link, _), found in zip(site.SECTIONS, site.messages(), strict=True):
        assert found, title
        assert (ROOT / "docs" / link).exists(), link


def test_a_message_is_shown_as_it_is(site: ModuleType) -> None:
    """Markdown takes none of its characters for its own."""
    shown = re.sub(r"\\([\\`*_\[\]<>#|])", r"\1", site.page())
    for message in itertools.chain(*site.messages()):
        assert f"\n- {message}\n" in shown
