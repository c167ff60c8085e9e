"""Rotary attention from its definition (arXiv 2104.09864), in both layouts: an oracle.

A head of width d turns the pair i of its rows at position p by the angle ``p·base^(-2i/d)``. Which
rows are pair i is the layout: ``(i, i + d/2)`` in Hugging Face, ``(2i, 2i + 1)`` in llama.cpp's
Llama and in torchtune. Written row by row, without the reshapes that are under test.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["pair_rows", "reordered", "scores"]


def pair_rows(index: int, width: int, *, neighbours: bool) -> tuple[int, int]:
    """Return the two rows of pair `index` in a head."""
    return (2 * index, 2 * index + 1) if neighbours else (index, index + width // 2)


def scores(x: Any, wq: Any, wk: Any, *, heads: int, kv_heads: int, neighbours: bool) -> Any:
    """Return ``q·k`` of every head and pair of positions, ``[heads, positions, positions]``."""
    q = _rotate(x @ wq.T, heads, neighbours=neighbours)
    k = _rotate(x @ wk.T, kv_heads, neighbours=neighbours)
    group = heads // kv_heads
    return np.stack([q[:, head] @ k[:, head // group].T for head in range(heads)])


def _rotate(values: Any, heads: int, *, neighbours: bool) -> Any:
    positions, rows = values.shape
    width = rows // heads
    split = values.reshape(positions, heads, width)
    turned = np.empty_like(split)
    for position in range(positions):
        for index in range(width // 2):
            first, second = pair_rows(index, width, neighbours=neighbours)
            angle = position * 10000.0 ** (-2 * index / width)
            u, v = split[position, :, first], split[position, :, second]
            turned[position, :, first] = u * math.cos(angle) - v * math.sin(angle)
            turned[position, :, second] = u * math.sin(angle) + v * math.cos(angle)
    return turned


def reordered(rows: Any, heads: int) -> Any:
    """Return rows in halves as rows of neighbours, one by one: what those tools store."""
    width = len(rows) // heads
    stored = np.empty_like(rows)
    for head in range(heads):
        for index in range(width // 2):
            for ours, theirs in zip(
                pair_rows(index, width, neighbours=False),
                pair_rows(index, width, neighbours=True),
                strict=True,
            ):
                stored[head * width + theirs] = rows[head * width + ours]
    return stored
