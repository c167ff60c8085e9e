"""A swappable graph, and adapters whose tensors stay on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.core.errors import UsageError
from lora_export.runtime.ort import CPU
from lora_export.runtime.swappable import BoundAdapter, SwappableGraph
from tests.ondevice.ort.test_ort_session import save

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def graph(tmp_path: Path) -> SwappableGraph:
    """Return ``b = a f``, where f is all ones by default."""
    return SwappableGraph(save(tmp_path / "g.onnx"), provider=CPU)


def test_each_run_has_its_own_adapter_and_the_base_none(graph):
    zeros = BoundAdapter(graph, "zeros", {"f": np.zeros((4, 4), np.float16)})
    feeds = {"a": np.ones((1, 4), np.float16), "not an input": np.ones(1)}
    for _ in range(2):
        assert zeros.run(feeds)["b"].tolist() == [[0, 0, 0, 0]]
        assert graph.base().run(feeds)["b"].tolist() == [[4, 4, 4, 4]]
    assert (zeros.inputs, list(zeros.optional), zeros.outputs) == (("a",), ["f"], ("b",))


def test_a_closed_adapter_is_refused_and_does_not_run_as_the_base(graph):
    with BoundAdapter(graph, "zeros", {"f": np.zeros((4, 4), np.float16)}) as adapter:
        pass
    with pytest.raises(UsageError, match="'zeros' was closed"):
        adapter.run({"a": np.ones((1, 4), np.float16)})
    assert graph.base().run({"a": np.ones((1, 4), np.float16)})["b"].tolist() == [[4, 4, 4, 4]]
