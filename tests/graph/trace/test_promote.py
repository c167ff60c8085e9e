"""Type promotion from known values: the same graph as with every operator run again."""

from __future__ import annotations

import contextlib

import pytest
import transformers

from lora_export.graph.spec import tasks
from lora_export.graph.trace import trace as tracing

pytestmark = pytest.mark.slow

SMALL = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("config", "task", "dtype"),
    [
        (transformers.RobertaConfig(num_hidden_layers=1, **SMALL), "fill-mask", "float32"),
        (transformers.LlamaConfig(num_hidden_layers=1, **SMALL), "text-generation", "float16"),
    ],
    ids=["integer-sums", "float16"],
)
def test_graph_is_that_of_the_exporter(
    config: transformers.PreTrainedConfig, task: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = []
    for context in (tracing.promotion_from_known_values, contextlib.nullcontext):
        monkeypatch.setattr(tracing, "promotion_from_known_values", context)
        traced = tracing.trace(config.to_dict(), tasks.by_name(task), dtype, 18)
        nodes.append([
            (node.op_type, [value and value.name for value in node.inputs], str(node.attributes))
            for node in traced.model.graph
        ])  # fmt: skip
    assert nodes[0] == nodes[1]


def test_exporter_is_left_as_it_was() -> None:
    from torch.onnx._internal.fx.passes import type_promotion

    before = type_promotion._TypePromotionInterpreter
    with tracing.promotion_from_known_values():
        assert type_promotion._TypePromotionInterpreter is not before
    assert type_promotion._TypePromotionInterpreter is before
