"""Blocks, slabs and tiles of a few bytes."""

from __future__ import annotations

import pytest

from lora_export.weights import rows


@pytest.fixture
def small_blocks(monkeypatch):
    def shrink(block_bytes: int, slab_bytes: int, tile: int = 3) -> None:
        monkeypatch.setattr(rows, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(rows, "_SLAB_BYTES", slab_bytes)
        monkeypatch.setattr(rows, "_TILE", tile)

    return shrink
