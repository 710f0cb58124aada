"""The gallery has the pictures that its program makes, with its texts, and stays small."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'mptcp[plot]'")

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its own module up.
    import sys

    sys.modules["gallery"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_program_writes(gallery: ModuleType) -> None:
    assert gallery.PAGE.read_text() == gallery.page()


def test_each_picture_is_there_and_they_are_small(gallery: ModuleType) -> None:
    wanted = {f"{scene.name}{suffix}.png" for scene in gallery.SCENES for suffix in ("", "-column")}
    pictures = {path.name: path.stat().st_size for path in gallery.PICTURES.iterdir()}
    assert set(pictures) == wanted
    assert sum(pictures.values()) < 1_500_000
