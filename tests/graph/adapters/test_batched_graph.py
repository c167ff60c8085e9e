"""Graphs with stacks: what is not a graph of an export is refused."""

from __future__ import annotations

import pytest

from lora_export.core.errors import ExportDirectoryError
from lora_export.graph.adapters.batched_graph import Stacks, with_stacks


def test_a_graph_without_inputs_is_damaged() -> None:
    with pytest.raises(ExportDirectoryError, match="has no input"):
        with_stacks(b"", Stacks({}, 1, []))
