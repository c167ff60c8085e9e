"""Exports that engines are made of, built once; each test gets a copy."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.helpers.builds import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.models import TinyModels


@pytest.fixture(scope="session")
def engine_exports(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A classifier with two adapters, merged and swappable, and a decoder with a cache."""
    root = tmp_path_factory.mktemp("engines")
    task = "text-classification"
    base = tiny.base("roberta", task)
    adapters = {"one": tiny.adapter(base, r=4, seed=1), "two": tiny.adapter(base, r=2, seed=2)}
    build(base, adapters, root / "merged", task=task)
    build(base, adapters, root / "swappable", task=task, mode="swappable")
    decoder = tiny.base("gpt2", "text-generation")
    own = tiny.adapter(decoder, task="text-generation", labels_count=None)
    build(decoder, {"one": own}, root / "decoder", task="text-generation")
    return {each.name: each for each in root.iterdir()}


@pytest.fixture
def export(engine_exports: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of one of the exports."""

    def copied(name: str) -> Path:
        return shutil.copytree(engine_exports[name], tmp_path / name)

    return copied
