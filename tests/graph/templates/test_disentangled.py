"""DeBERTa v3's templates: the bytes of a trace, and the configs that must be traced."""

from __future__ import annotations

from typing import Any

import pytest

from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.tasks import by_name
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import NoTemplateError, match
from lora_export.graph.templates.shipped import from_template
from tools.templates.compare import same_computation

V3: dict[str, Any] = {
    "model_type": "deberta-v2", "vocab_size": 201, "hidden_size": 36, "num_hidden_layers": 4,
    "num_attention_heads": 3, "intermediate_size": 47, "max_position_embeddings": 512,
    "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
    "share_att_key": True, "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7,
    "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
TASK = "text-classification"


def test_saved_spellings_mean_the_same() -> None:
    saved = {**V3, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 36, "legacy": True,
             "pad_token_id": 0, "pooler_dropout": 0, "pooler_hidden_act": "gelu"}  # fmt: skip
    family = FAMILIES["deberta-v2"]
    assert match(family, saved).sizes == match(family, V3).sizes


@pytest.mark.parametrize(
    "changed",
    [
        {"relative_attention": False},
        {"position_buckets": 128},
        {"position_buckets": -1},
        {"norm_rel_ebd": "none"},
        {"share_att_key": False},
        {"pos_att_type": "c2p"},
        {"pos_att_type": ["p2c"]},
        {"pos_att_type": None},
        {"max_relative_positions": 512},
        {"max_position_embeddings": 1024},
        {"position_biased_input": True},
        {"type_vocab_size": 2},
        {"conv_kernel_size": 3},
        {"conv_act": "gelu"},
        {"embedding_size": 24},
        {"attention_head_size": 8},
        {"pooler_hidden_size": 24},
        {"pooler_hidden_act": "tanh"},
        {"hidden_act": "gelu_new"},
        {"legacy": False},
        {"num_attention_heads": 5},
    ],
)
def test_what_changes_the_graph_has_no_template(changed: dict[str, Any]) -> None:
    with pytest.raises(NoTemplateError):
        match(FAMILIES["deberta-v2"], {**V3, **changed})


@pytest.mark.parametrize(
    "key",
    ["relative_attention", "position_buckets", "norm_rel_ebd", "share_att_key", "pos_att_type",
     "position_biased_input"],
)  # fmt: skip
def test_absent_keys_mean_what_deberta_v2_has(key: str) -> None:
    config = {name: value for name, value in V3.items() if name != key}
    with pytest.raises(NoTemplateError, match=key):
        match(FAMILIES["deberta-v2"], config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "heads", "spelling"),
    [(7, 5, ["c2p", "p2c"]), (6, 6, "p2c|c2p"), (6, 3, "c2p|p2c"), (2, 4, "p2c|c2p")],
)
def test_an_instance_computes_what_is_traced(depth: int, heads: int, spelling: Any) -> None:
    from lora_export.graph.template_build import build_template

    config = {
        **V3, "num_hidden_layers": depth, "num_attention_heads": heads, "hidden_size": 12 * heads,
        "pos_att_type": spelling, "num_labels": 4,
    }  # fmt: skip
    task = by_name(TASK)
    made = from_template(config, task, "float32", 20, Choices(), sentence=None, untied=False)
    traced = build_template(config, task, "float32", 20, Choices())
    assert same_computation(made, traced)
    if depth > 4 and heads != 3:  # a constant of the trace is 3 too, and shares its name
        assert made.onnx_bytes == traced.onnx_bytes
