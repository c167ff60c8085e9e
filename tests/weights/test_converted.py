"""Hub checkpoints as the model holds them, compared with transformers' own loading."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import transformers

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.name_conversions import Conversion
from lora_export.core.tensors import MemoryTensor, bytes_of, read_all
from lora_export.graph.trace.conversion_rules import conversions_of
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.converted import as_loaded

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
IMAGE = {"image_size": 16, "patch_size": 8, **SIZES}
TEXT = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **SIZES}
EXPERTS = {"num_key_value_heads": 2, "moe_intermediate_size": 16, **TEXT}
MODELS = {
    "GPTNeoXForCausalLM": TEXT,
    "ViTForImageClassification": IMAGE,
    "Dinov2Model": {"use_swiglu_ffn": True, **IMAGE},  # a matrix in two
    "MixtralForCausalLM": {"num_local_experts": 12, **EXPERTS},  # 12: expert 10 sorts behind 9
    "Qwen3MoeForCausalLM": {"num_experts": 12, **EXPERTS},
}


@pytest.mark.parametrize("kind", MODELS)
def test_tensors_are_what_transformers_loads(kind, tmp_path) -> None:
    torch.manual_seed(0)
    model_class = getattr(transformers, kind)
    model = model_class(model_class.config_class(**MODELS[kind]))
    model.save_pretrained(tmp_path)
    stored = open_checkpoint(tmp_path).tensors
    state = model_class.from_pretrained(tmp_path).state_dict()
    assert set(stored) - set(state)  # the file does have other names
    loaded = as_loaded(stored, conversions_of(model), state.__contains__)
    assert set(loaded) == set(state)
    for name, tensor in loaded.items():
        assert np.array_equal(read_all(tensor), state[name].numpy()), name


def tensor(name, *shape, start=0):
    values = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
    return MemoryTensor(name, DTYPES["float32"], values)


def rule(*targets, sources=("x",), operations=()):
    pattern = "|".join(f"(?P<g{at}>{source})" for at, source in enumerate(sources))
    return Conversion(pattern, targets, operations)


def test_any_range_of_bytes_can_be_read() -> None:
    tensors = {f"e.{at}.w": tensor(f"e.{at}.w", 2, 3, start=10 * at) for at in range(3)}
    stack = rule("e.all", sources=[r"e\..*\.w"], operations=("stack:0",))
    whole = as_loaded(tensors, [stack], {"e.all"}.__contains__)["e.all"]
    expected = bytes_of(np.stack([each.values for each in tensors.values()]))
    for start in range(0, 72, 5):
        for end in range(start, 73, 7):
            buffer = memoryview(bytearray(end - start))
            whole.read_into(buffer, start)
            assert buffer == expected[start:end]


def test_names_that_are_the_models_already_stay() -> None:
    tensors = {"x.weight": tensor("x.weight", 2), "other": tensor("other", 2)}
    loaded = as_loaded(tensors, [rule("y")], {"x.weight"}.__contains__)
    assert set(loaded) == {"x.weight", "other"}


def test_two_values_of_one_parameter_are_refused() -> None:
    tensors = {"x.weight": tensor("x.weight", 2), "y.weight": tensor("y.weight", 2, start=5)}
    with pytest.raises(CheckpointError, match=re.escape("'x.weight' and 'y.weight'")):
        as_loaded(tensors, [rule("y")], {"y.weight"}.__contains__)


def test_an_unknown_operation_is_refused_even_where_the_shape_would_fit() -> None:
    with pytest.raises(UnsupportedError, match=r"'x\.weight' .* by Interleave") as caught:
        as_loaded(
            {"x.weight": tensor("x.weight", 2, 2)},
            [rule("x", operations=("Interleave",))],
            {"x.weight"}.__contains__,
        )
    assert "save_original_format=False" in (caught.value.hint or "")


def test_a_missing_expert_is_refused() -> None:
    names = ["e.0.a", "e.1.a", "e.0.b"]
    stack = rule(
        "e.ab", sources=[r"e\..*\.a", r"e\..*\.b"], operations=("stack:0", "concatenate:1")
    )
    with pytest.raises(CheckpointError, match="stacked of 2"):
        as_loaded({n: tensor(n, 2, 2) for n in names}, [stack], {"e.ab"}.__contains__)


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        Conversion("(?P<g0>", ("y",))
