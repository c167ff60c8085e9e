"""The rows of fused weights, by what each model's own attention makes of numbered outputs.

The fused module is replaced by one that returns 0, 1, 2, …; what arrives as query, key and value
then names the rows. One position, 0, where a rotation is the identity.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from lora_export.adapters.fused_layouts import LAYOUTS, rows_of_parts

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GPT: dict[str, Any] = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomModel", {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4}),
    "codegen": ("CodeGenModel", {**GPT, "n_head": 8, "rotary_dim": 4}),
    "dbrx": (
        "DbrxModel",
        {
            "vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 1e4},
            "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1},
        },
    ),
    "falcon": ("FalconModel", {**SIZES, "multi_query": True, "new_decoder_architecture": False}),
    "falcon, of many heads": (
        "FalconModel", {**SIZES, "multi_query": False, "new_decoder_architecture": False},
    ),
    "falcon, in groups": (
        "FalconModel", {**SIZES, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "gpt2": ("GPT2Model", GPT),
    "gpt_bigcode": ("GPTBigCodeModel", {**GPT, "multi_query": True}),
    "gpt_bigcode, of many heads": ("GPTBigCodeModel", {**GPT, "multi_query": False}),
    "gpt_neox": ("GPTNeoXModel", SIZES),
    "imagegpt": ("ImageGPTModel", GPT),
    "modernbert": ("ModernBertModel", SIZES),
    "mpt": ("MptModel", {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 1}),
    "openai-gpt": ("OpenAIGPTModel", GPT),
    "persimmon": ("PersimmonModel", {**SIZES, "qk_layernorm": False}),
    "phi3": ("Phi3Model", {**SIZES, "num_key_value_heads": 2}),
}  # fmt: skip
METHODS = {"bloom": "_reshape", "falcon": "_split_heads"}
"""Methods that split the fused outputs, where the class has one."""

HALVES = {"phi3", "phi4_multimodal", "glm", "glm4"}
VISION = {"qwen2_vl", "qwen2_5_vl", "sam"}


class _CapturedError(Exception):
    """Ends the forward pass once query, key and value are known."""


def numbered(outputs: int) -> Any:
    import torch

    class Numbered(torch.nn.Module):
        def forward(self, states: Any) -> Any:
            return torch.arange(outputs, dtype=torch.float32).expand(*states.shape[:-1], -1).clone()

    return Numbered()


def captured(model: Any, fused: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Return the rows that the model's attention takes for q, k and v."""
    import torch

    owner = next(m for m in model.modules() if hasattr(m, fused))
    linear = getattr(owner, fused)
    outputs = linear.weight.shape[1 if type(linear).__name__ == "Conv1D" else 0]
    found: list[Any] = []

    def stop(*tensors: Any, **_: Any) -> None:
        found.extend(each for each in tensors if isinstance(each, torch.Tensor))
        raise _CapturedError

    model_type = model.config.model_type
    if model_type in METHODS:
        states = torch.arange(outputs, dtype=torch.float32).reshape(1, 1, -1)
        found = list(getattr(owner, METHODS[model_type])(states))
    else:
        setattr(owner, fused, numbered(outputs))
        module = importlib.import_module(type(owner).__module__)
        if hasattr(module, "eager_attention_forward"):
            monkeypatch.setattr(module, "eager_attention_forward", stop)
        elif hasattr(owner, "_attn"):
            monkeypatch.setattr(owner, "_attn", stop)
        else:  # MPT: the first product is q kᵀ, the second is of v
            monkeypatch.setattr(torch, "matmul", lambda q, k: found.extend((q, k.mT)) or q @ k)
            chunk = torch.Tensor.chunk
            monkeypatch.setattr(
                torch.Tensor, "chunk", lambda x, *a, **k: found.extend(r := chunk(x, *a, **k)) or r
            )
        ids = torch.zeros((1, 1), dtype=torch.long)
        try:
            with torch.no_grad():
                model(input_ids=ids)
        except _CapturedError:
            pass
    rows = [np.unique(each.detach().numpy().astype(int)) for each in found[:3]]
    return {"outputs": np.array(outputs), **dict(zip("qkv", rows, strict=True))}


@pytest.mark.parametrize("case", CASES)
def test_the_rows_are_those_that_the_models_attention_takes(case, monkeypatch):
    import torch
    import transformers

    class_name, settings = CASES[case]
    model_type = case.partition(",")[0]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config).eval()
    fused = next(name for name in LAYOUTS[model_type] if name != "gate_up_proj")
    found = captured(model, fused, monkeypatch)
    rows = rows_of_parts(config.to_dict(), fused, int(found["outputs"]))
    assert rows is not None
    assert set(rows) == {"q", "k", "v"}
    for part, expected in rows.items():
        assert np.array_equal(np.sort(expected), found[part]), part
    together = np.concatenate(list(rows.values()))
    assert np.array_equal(np.sort(together), np.arange(found["outputs"]))


def test_the_order_within_a_part_is_that_of_its_heads():
    config = {"model_type": "falcon", "num_attention_heads": 4, "num_kv_heads": 2,
              "new_decoder_architecture": True}  # fmt: skip
    rows = rows_of_parts(config, "query_key_value", 16)
    assert rows is not None
    assert {part: each.tolist() for part, each in rows.items()} == {
        "q": [0, 1, 2, 3, 8, 9, 10, 11],
        "k": [4, 5, 12, 13],
        "v": [6, 7, 14, 15],
    }


def test_every_row_of_the_table_is_proven():
    tested = {case.partition(",")[0] for case in CASES}
    assert set(LAYOUTS) - tested - HALVES - VISION == {"decision_transformer"}  # GPT-2's own


@pytest.mark.parametrize(
    ("config", "fused"),
    [
        ({"model_type": "unknown", "num_attention_heads": 4}, "qkv_proj"),
        ({"model_type": "gpt_neox"}, "query_key_value"),
        ({"model_type": "phi3", "num_attention_heads": 5}, "qkv_proj"),
        ({"model_type": "gpt2", "n_embd": 48, "n_head": 4}, "c_attn"),
    ],
)
def test_what_is_not_known_is_none(config, fused):
    assert rows_of_parts(config, fused, 96) is None


def test_a_text_models_own_section_decides():
    text = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2}
    rows = rows_of_parts({"model_type": "any_vlm", "text_config": text}, "qkv_proj", 64)
    assert rows is not None
    assert [len(rows[part]) for part in "qkv"] == [32, 16, 16]
