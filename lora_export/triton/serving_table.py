"""``serving.json`` as the host writes it; the server reads it with `triton.serving.index`.

ServingTable
├── format, way, graph, weights, …      of the model
├── adapters {name → AdapterLine}       the adapters that it serves
└── matrices {input → MatrixLine}       where a merge at load adds ``A B``
"""

from __future__ import annotations

from typing import TypedDict

__all__ = ["AdapterLine", "MatrixLine", "ServingTable"]


class AdapterLine(TypedDict, total=False):
    """An adapter.

    Attributes:
        file: Its graph or its pack; empty where its values are in the shared graph.
        nbytes: What it takes when it is loaded.
        row: Its row in the stacks of a batched graph.
        width: How many of the logits it has there; None for all.
        identity: What tells an adapter in the stacks from another one of its name.
    """

    file: str
    nbytes: int
    row: int
    width: int | None
    identity: str


class MatrixLine(TypedDict):
    """A weight of the base graph, and the axis of its outputs."""

    initializer: str
    out_axis: int


class _Required(TypedDict):
    format: str
    way: str
    graph: str
    graph_bytes: int
    weights: str
    base: bool
    fingerprint: str
    inputs: list[str]
    outputs: list[str]
    axes: dict[str, list[str | int | None]]
    adapters: dict[str, AdapterLine]
    matrices: dict[str, MatrixLine]
    base_width: int | None


class ServingTable(_Required, total=False):
    """The whole index; `retired` has adapters whose answers the server may still have cached."""

    retired: list[str]
