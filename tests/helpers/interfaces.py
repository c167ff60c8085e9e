"""Interfaces of graphs, for tests that have no graph."""

from __future__ import annotations

from lora_export.graph.spec.signature import Input, Signature

__all__ = ["reading"]


def reading(*names: str) -> Signature:
    """Return the interface of a graph that reads text inputs called `names`."""
    return Signature(tuple(Input(name, "int64", ("batch", "sequence")) for name in names), ())
