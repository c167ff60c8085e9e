"""The modes of an export's graphs, and the modes in which its adapters are served.

A layer that varies by mode has one table, with a row for each mode; see
``docs/adr/0015-modes-are-tables.md``.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Literal

__all__ = [
    "ADAPTER_MODES",
    "BASE_GRAPH",
    "BATCHED_GRAPH",
    "SHARED_GRAPHS",
    "SHARED_MODES",
    "SWAPPABLE_GRAPH",
    "Mode",
    "ServingMode",
    "ServingWord",
]


class _Word(str, Enum):
    """A word of a file, a flag or a message: a member is its value wherever text is wanted."""

    __str__ = str.__str__
    __repr__ = str.__repr__


class Mode(_Word):
    """The mode of a graph: the way in which it holds adapters.

    Attributes:
        BASE: It holds none.
        MERGED: It is the graph of one adapter, which is merged into its weights.
        SWAPPABLE: Adapters are values of its optional inputs, each in a pack.
        BATCHED: Adapters are rows of its stacks, and every row of a batch names one.
    """

    BASE = "base"
    MERGED = "merged"
    SWAPPABLE = "swappable"
    BATCHED = "batched"


class ServingMode(_Word):
    """The mode in which an adapter is run; best first.

    Attributes:
        MERGED: By its own graph.
        SWAPPABLE: By the swappable graph, with its pack.
        BATCHED: By its row of the batched graph.
        MERGE_AT_LOAD: By the base graph, with weights that are merged as the graph is opened.
    """

    MERGED = "merged"
    SWAPPABLE = "swappable"
    BATCHED = "batched"
    MERGE_AT_LOAD = "merge_at_load"


ServingWord = ServingMode | Literal["merged", "swappable", "batched", "merge_at_load"]
"""A serving mode, or its word, as callers give it."""

SHARED_MODES: Final = (Mode.SWAPPABLE, Mode.BATCHED)
"""The modes of one graph for all adapters."""
ADAPTER_MODES: Final = (Mode.MERGED, *SHARED_MODES)
"""The modes that an export can be made in."""

BASE_GRAPH: Final = Mode.BASE.value
SWAPPABLE_GRAPH: Final = Mode.SWAPPABLE.value
BATCHED_GRAPH: Final = Mode.BATCHED.value
SHARED_GRAPHS: Final = (SWAPPABLE_GRAPH, BATCHED_GRAPH)
"""An export has one graph of each of these modes at most, called like the mode."""
