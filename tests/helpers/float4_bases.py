"""Bases in NF4 and FP4 whose every code is known: packed here, one element at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.tensors import read_all
from lora_export.weights.checkpoint import open_checkpoint
from tests.helpers.quantized_bases import LLAMA_NF4, save_quantized, stored_parts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Float4Weight", "float4_weight", "save_float4", "table_of"]


@dataclass(frozen=True)
class Float4Weight:
    """A weight: its tensors, the scale of each block, and its values."""

    parts: dict[str, Array]
    scales: Array
    values: Array


def table_of(kind: str) -> Array:
    """Return the value of each code, as bitsandbytes writes it beside a weight."""
    return stored_parts(f"{kind}-130.weight")[f"{kind}-130.weight.quant_map"]


def float4_weight(
    kind: str, shape: tuple[int, int], *, nested: bool, seed: int, block: int, dtype: str
) -> Float4Weight:
    """Return a weight of random codes."""
    rng = np.random.default_rng(seed)
    count = shape[0] * shape[1]
    codes, table = rng.integers(0, 16, count), table_of(kind)
    packed = np.array([16 * a + b for a, b in codes.reshape(-1, 2)], np.uint8)
    state: dict[str, Any] = {
        "quant_type": kind, "blocksize": block, "dtype": dtype, "shape": list(shape),
    }  # fmt: skip
    blocks = -(-count // block)
    parts = {"": packed[:, None], ".quant_map": table}
    scales = rng.uniform(0.02, 0.1, blocks).astype(np.float32)
    if nested:
        state |= {"nested_blocksize": 256, "nested_offset": 0.05}
        values = np.linspace(-1, 1, 256, dtype=np.float32)
        own = rng.uniform(0.01, 0.04, -(-blocks // 256)).astype(np.float32)
        each = rng.integers(0, 256, blocks).astype(np.uint8)
        scales = values[each] * own[np.arange(blocks) // 256] + np.float32(0.05)
        parts |= {".absmax": each, ".nested_absmax": own, ".nested_quant_map": values}
    else:
        parts[".absmax"] = scales
    text = json.dumps(state).encode()
    parts[f".quant_state.bitsandbytes__{kind}"] = np.frombuffer(text, np.uint8)
    exact = table[codes].astype(np.float32) * scales[np.arange(count) // block]
    return Float4Weight(parts, scales, exact.reshape(shape))


def save_float4(
    folder: Path, kind: str, *, nested: bool = False, block: int = 64
) -> dict[str, Float4Weight]:
    """Write the tiny Llama with its weights stored so; return them by their names.

    All other tensors, and the dtype that values are rounded to, are float32.
    """
    folder.mkdir()
    given = open_checkpoint(LLAMA_NF4)
    tensors: dict[str, Array] = {}
    found: dict[str, Float4Weight] = {}
    for at, (name, tensor) in enumerate(given.tensors.items()):
        if name not in given.quantized.weights:
            tensors[name] = read_all(tensor).astype(np.float32)
            continue
        found[name] = float4_weight(
            kind, tensor.shape, nested=nested, seed=at, block=block, dtype="float32"
        )
        tensors |= {f"{name}{key}": each for key, each in found[name].parts.items()}
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    config = {**given.config, "dtype": "float32", "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(config))
    save_quantized(folder / "model.safetensors", tensors)
    return found
