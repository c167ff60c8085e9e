"""Readers of bases that are stored in fewer bits: GGUF, and the formats of Hugging Face."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.parameters import Parameter
from lora_export.core.quantization import Quantized
from lora_export.core.tensors import read_all
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.gguf.gguf_parts import holds_gguf_base
from lora_export.weights.parameter_entries import carried_entries
from lora_export.weights.quantized.carried import stores_zero_points
from tools.reader_fuzz.formats import mutate_header, mutate_layout
from tools.reader_fuzz.mutate_bytes import mutate_bytes
from tools.reader_fuzz.mutate_gguf import mutate_gguf
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.tensors import Tensor
    from tools.reader_fuzz.reader import Files, Mutator

__all__ = ["BASES"]

_MODULE: Final = "up_proj"
_CONFIG: Final = "config.json"
_WEIGHTS: Final = "model.safetensors"
_VALUES_LIMIT: Final = 1 << 20
_SHAPES: Final = {
    "model.embed_tokens": (32, 32), "model.norm": (32,), "lm_head": (32, 32),
    **{f"model.layers.0.{name}": shape for name, shape in {
        "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32), "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64), "input_layernorm": (32,), "post_attention_layernorm": (32,),
    }.items()},
}  # fmt: skip
_LLAMA: Final = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32,
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
}  # fmt: skip


def _gguf(_fixed: Path) -> Target:
    """Return the reader of a base in GGUF: in one file, with a config beside it, in two parts."""
    from tests.helpers.gguf_bases import save_gguf

    random = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": random.standard_normal(shape).astype(np.float32)
        for name, shape in _SHAPES.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.gguf")
        save_gguf(path, "llama", _LLAMA, tensors, kind=lambda _: "Q8_0", split__no=0)
        one = path.read_bytes()
        save_gguf(path, "llama", _LLAMA, tensors, kind=lambda _: "F16")
        plain = path.read_bytes()
    seeds: tuple[Files, ...] = (
        {"x.gguf": one},
        {"x.gguf": plain, _CONFIG: json.dumps(_LLAMA).encode()},
        {"x-00001-of-00001.gguf": one},
    )
    return Target(
        seeds,
        {**dict.fromkeys(("x.gguf", "x-00001-of-00001.gguf"), (mutate_gguf,)),
         _CONFIG: (mutate_json,)},
        _read_gguf,
    )  # fmt: skip


def _read_gguf(folder: Path) -> None:
    holds_gguf_base(folder)
    _read_values(open_checkpoint(folder).tensors)


def _read_values(tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        if np.prod([float(each) for each in tensor.shape]) < _VALUES_LIMIT:
            read_all(tensor)


_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False,
             "checkpoint_format": "gptq", "dynamic": {"-:.*x.*": {}}},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm",
            "zero_point": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "packed": {"quant_method": "compressed-tensors", "format": "pack-quantized",
               "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                   "num_bits": 4, "group_size": 16, "strategy": "group", "symmetric": False,
                   "type": "int"}}}},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}  # fmt: skip
"""The ``quantization_config`` of a checkpoint, by the way its weights are stored."""

_STORED: Final = {"packed": "int4-asymmetric", "nf4": "nf4-nested-5", "int8": "int8"}
"""The ways of which a library wrote the weight that is read."""

_PARAMETERS: Final = {
    "gptq": ((40, 96), 32), "awq": ((40, 96), 32), "packed": ((44, 96), 16),
}  # fmt: skip
"""The shape of a weight whose integers a graph takes over, and its blocks."""


def _parts(kind: str) -> dict[str, Any]:
    """Return the tensors of a weight."""
    from tests.helpers.hand_packed import pack_awq, pack_fp8_blocks, pack_gptq, pack_mxfp4
    from tests.helpers.quantized_bases import stored_parts

    if kind in _STORED:
        name = _STORED[kind]
        stored = stored_parts(f"{name}.weight")
        return {f"{_MODULE}{key.removeprefix(name)}": each for key, each in stored.items()}
    if kind == "mxfp4":
        blocks, _ = pack_mxfp4(2, 8, 32)
        return {f"mlp.experts.{_MODULE}{key}": each for key, each in blocks.items()}
    packed = {
        "gptq": lambda: pack_gptq(40, 96),
        "awq": lambda: pack_awq(40, 96),
        "fp8": lambda: pack_fp8_blocks(40, 130),
    }[kind]()[0]
    return {f"{_MODULE}.{key}": each for key, each in packed.items()}


def _quantized(kind: str, _fixed: Path) -> Target:
    """Return the reader of a quantized base, and of what a graph takes over unchanged."""
    from tests.helpers.quantized_bases import write_base

    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder), _parts(kind), _SETTINGS[kind])
        whole = {name: Path(folder, name).read_bytes() for name in (_CONFIG, _WEIGHTS)}
    bare = {"model_type": "llama", "dtype": "float16"}
    apart = {
        **whole, _CONFIG: json.dumps(bare).encode(),
        "quantize_config.json": json.dumps(_SETTINGS[kind]).encode(),
    }  # fmt: skip
    tables: tuple[Mutator, ...] = (mutate_json,)
    return Target(
        (whole, apart),
        {_CONFIG: tables, "quantize_config.json": tables,
         _WEIGHTS: (mutate_bytes, mutate_header, mutate_layout)},
        partial(_read_quantized, kind),
    )  # fmt: skip


def _read_quantized(kind: str, folder: Path) -> None:
    tensors = open_checkpoint(folder).tensors
    _read_values(tensors)
    source = tensors.get(f"{_MODULE}.weight")
    if kind not in _PARAMETERS or source is None or source.shape != _PARAMETERS[kind][0]:
        return
    shape, block = _PARAMETERS[kind]
    form: Any = block
    quantized = Quantized(4, form, axis=0, zero_points=True)
    parameter = Parameter(
        source.name, shape, "float32", "Linear", transposed=True, quantized=quantized
    )
    stores_zero_points(source, parameter)
    for entry in carried_entries(parameter, source) or ():
        for _ in entry.blocks():
            pass


BASES: Final[Mapping[str, Reader]] = {
    "gguf-base": Reader(_gguf, slowness=10),
    **{f"quantized-{kind}": Reader(partial(_quantized, kind), slowness=4) for kind in _SETTINGS},
}
"""The readers of bases in fewer bits."""
