"""Parameters that ``save_pretrained`` leaves out: recognised in a model, computed as it does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from lora_export.core.computed_parameters import COMPUTED
from lora_export.core.dtypes import by_name
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import MemoryTensor, read_all
from lora_export.exports.plan import match_base
from lora_export.graph.spec import tasks
from lora_export.graph.trace.empty_model import build_model
from lora_export.graph.trace.initializers import _computed

MARIAN = transformers.MarianConfig(
    vocab_size=40, d_model=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=24,
    pad_token_id=0, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip
POSITIONS = ("model.decoder.embed_positions.weight", "model.encoder.embed_positions.weight")


@pytest.mark.parametrize("shape", [(24, 12), (512, 64), (33, 16), (1024, 30)], ids=str)
def test_sinusoidal_halves_are_marian_s_positions(shape: tuple[int, int]) -> None:
    wanted = MarianSinusoidalPositionalEmbedding(*shape).create_weight().numpy()
    found = COMPUTED["sinusoidal_halves"](shape)
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted)


def test_what_is_not_saved_is_what_is_recognised_as_computed(tmp_path) -> None:
    saved = transformers.MarianMTModel(MARIAN)
    saved.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert not stored & set(POSITIONS)
    task = tasks.by_name("text2text-generation")
    model = build_model(MARIAN.to_dict(), task, torch.float16, None)
    state = model.state_dict(keep_vars=True)
    kinds = {name: _computed(name, value, model) for name, value in state.items()}
    assert {name for name, kind in kinds.items() if kind} == set(POSITIONS)
    loaded = transformers.MarianMTModel.from_pretrained(tmp_path).state_dict()
    for name in POSITIONS:
        values = COMPUTED[str(kinds[name])](tuple(state[name].shape))
        assert torch.equal(torch.from_numpy(values), loaded[name])
        assert state[name].dtype == torch.float16  # looking has not changed the model


def test_checkpoint_s_own_values_come_before_computed_ones() -> None:
    parameter = Parameter(
        "positions.weight", (6, 4), "float16", "Embedding", computed="sinusoidal_halves"
    )
    plan = match_base([parameter], "", {})
    assert not plan.missing
    values = np.frombuffer(read_all(plan.sources[parameter.name]), np.float32).reshape(6, 4)
    assert np.array_equal(values, COMPUTED["sinusoidal_halves"]((6, 4)))
    own = MemoryTensor(parameter.name, by_name("float32"), np.ones((6, 4), np.float32))
    assert match_base([parameter], "", {own.name: own}).sources[own.name] is own
    assert match_base([replace(parameter, computed=None)], "", {}).missing == (parameter.name,)


def test_no_other_family_leaves_parameters_out() -> None:
    """A family that joins them needs a kind in `COMPUTED`, unless its values are not parameters."""
    folder = Path(transformers.__file__).parent / "models"
    found = {
        path.parent.name
        for path in folder.glob("*/modeling_*.py")
        if re.search(r"^    _keys_to_ignore_on_save = ", path.read_text("utf-8"), re.MULTILINE)
    }
    assert found == {"marian"}
