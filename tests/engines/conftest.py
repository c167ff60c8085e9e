"""Exports that engines are made of, each built when it is first asked for; tests get copies."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.builds import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.helpers.models import TinyModels

_KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "merged": ("roberta", "text-classification", {}),
    "swappable": ("roberta", "text-classification", {"mode": "swappable"}),
    "decoder": ("gpt2", "text-generation", {}),
    "static": ("gpt2", "text-generation", {"cache_length": 24}),
    "pair": ("t5", "text2text-generation", {}),
    "int4": ("roberta", "text-classification", {"quantize": "int4", "dtype": "float16"}),
}
"""A classifier with two adapters, merged and swappable; decoders; an encoder and its decoder."""


@pytest.fixture(scope="session")
def engine_exports(
    tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function: kind → an export of it."""
    root = tmp_path_factory.mktemp("engines")
    made: dict[str, Path] = {}

    def export(kind: str) -> Path:
        if kind not in made:
            model, task, settings = _KINDS[kind]
            base = tiny.base(model, task)
            if task == "text-classification":
                adapters = {
                    "one": tiny.adapter(base, r=4, seed=1),
                    "two": tiny.adapter(base, r=2, seed=2),
                }
            else:
                adapters = {"one": tiny.adapter(base, task=task, labels_count=None)}
            build(base, adapters, root / kind, task=task, **settings)
            made[kind] = root / kind
        return made[kind]

    return export


@pytest.fixture
def export(engine_exports: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of one of the exports."""

    def copied(name: str) -> Path:
        return shutil.copytree(engine_exports(name), tmp_path / name)

    return copied
