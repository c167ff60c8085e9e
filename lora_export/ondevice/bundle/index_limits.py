"""Limits on what the index of a bundle asks a device for."""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_ROUNDS"]

MOST_ROUNDS: Final = 100_000
"""The most rounds of a measurement: an hour of a graph that takes 15 ms."""
