"""mlx-lm's format: the transposes, the scale as it is, DoRA's magnitude."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.tensors import read_all
from tests.helpers.formats import deltas, factors, write_tensors

Q = "model.layers.3.self_attn.q_proj"
A, B = factors(4, 6)
CONFIG = {
    "fine_tune_type": "lora",
    "model": "some/model",
    "num_layers": 4,
    "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
}
TENSORS = {f"{Q}.lora_a": A.T, f"{Q}.lora_b": B.T}


def read(tmp_path, tensors=TENSORS, config=CONFIG):
    write_tensors(tmp_path / "adapters.safetensors", tensors, config)
    return read_adapter(tmp_path, name="x", source="here")


def test_the_layers_forward_is_the_update(tmp_path):
    """mlx-lm's layer: ``y = W x + scale · (x A) B`` with A ``[in, r]``, B ``[r, out]``."""
    adapter = read(tmp_path)
    assert (adapter.format, adapter.base_name, adapter.tensor_count) == ("mlx", "some/model", 2)
    inputs = np.random.default_rng(0).standard_normal((5, 4))
    expected = 20.0 * (inputs @ TENSORS[f"{Q}.lora_a"]) @ TENSORS[f"{Q}.lora_b"]
    np.testing.assert_allclose(inputs @ deltas(adapter)[Q].T, expected, rtol=1e-12)


def test_dora_brings_its_magnitude(tmp_path):
    m = np.arange(1, 7, dtype=np.float32)
    config = {**CONFIG, "fine_tune_type": "dora"}
    (update,) = read(tmp_path, {**TENSORS, f"{Q}.m": m}, config).low_rank
    np.testing.assert_array_equal(read_all(update.magnitude), m)


def test_an_embedding(tmp_path):
    a, b = factors(9, 6)
    tensors = {"model.embed_tokens.lora_a": a.T, "model.embed_tokens.lora_b": b.T}
    (update,) = read(tmp_path, tensors).low_rank
    assert (update.embedding, update.a.shape, update.b.shape) == (True, (2, 9), (6, 2))
    with pytest.raises(UnsupportedError, match="embedding under DoRA"):
        read(tmp_path, {**tensors, "model.embed_tokens.m": np.ones(9, np.float32)})


def parameters(**changed):
    return {**CONFIG, "lora_parameters": {**CONFIG["lora_parameters"], **changed}}


REFUSED = {
    "no config": (TENSORS, None, AdapterError, "no adapter_config.json"),
    "no scale": (TENSORS, {"fine_tune_type": "lora"}, AdapterError, "lora_parameters.scale"),
    "full": (TENSORS, {**CONFIG, "fine_tune_type": "full"}, UnsupportedError, "'full'"),
    "alpha": (TENSORS, parameters(alpha=16), AdapterError, "alpha beside scale"),
    "rank": (TENSORS, parameters(rank=3), AdapterError, "has rank 2, but its config says 3"),
    "scale": (TENSORS, parameters(scale="1"), AdapterError, "finite number"),
    "list": (TENSORS, [1], AdapterError, "table of settings"),
    "half": ({f"{Q}.lora_a": A.T}, CONFIG, AdapterError, "has only lora_a"),
    "ranks": ({**TENSORS, f"{Q}.lora_b": B.T[:1]}, CONFIG, AdapterError, "A has rank 2, B has 1"),
    "other": ({**TENSORS, f"{Q}.weight": A}, CONFIG, UnsupportedError, f"{Q}.weight"),
    "magnitude": ({**TENSORS, f"{Q}.m": A[0]}, CONFIG, AdapterError, r"per output: \[6\]"),
    "experts": (
        {f"{Q}.lora_a": np.ones((3, 4, 2)), f"{Q}.lora_b": np.ones((3, 2, 6))},
        CONFIG, UnsupportedError, "3 axes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(tmp_path, case):
    tensors, config, kind, text = REFUSED[case]
    with pytest.raises(kind) as error:
        read(tmp_path, tensors, config)
    assert re.search(text, str(error.value))
    assert error.value.hint
