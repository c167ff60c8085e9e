"""Exports of a tiny decoder, merged and swappable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"


@pytest.fixture(scope="session")
def decoders(tiny, tmp_path_factory) -> dict[str, Path]:
    """An export of each mode with the adapters ``a`` and ``b``."""
    root = tmp_path_factory.mktemp("decoders")
    base = tiny.base("llama", TASK, tokenizer=True)
    adapters = {n: tiny.adapter(base, task=TASK, seed=at) for n, at in (("a", 1), ("b", 2))}
    return {
        mode: build(base, adapters, root / mode, mode=mode, task=TASK).output
        for mode in ("merged", "swappable", "batched")
    }
