"""The tensors of a GGUF file under the names and in the layout that Hugging Face has for them.

    blocks of a row → values in float32 → order of rows, shift, transpose undone → model's dtype

llama.cpp stores rows of q and k as neighbours (``rotary``), Gemma's norms plus one, and GPT-2's
``Conv1D`` as ``[out, in]``. Nothing is read before it is needed: a part of a weight costs the
blocks that hold it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_export.adapters.layout import CONV1D_MODULES
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import UnsupportedError
from lora_export.core.gguf_library import tensor_names
from lora_export.core.listing import first_few
from lora_export.core.tensors import same_values
from lora_export.weights.gguf.gguf_codecs import (
    Blocks,
    Floats,
    Matrix,
    Part,
    Reordered,
    ReorderedVector,
    Shifted,
)
from lora_export.weights.gguf.gguf_config import architecture_of
from lora_export.weights.quantized.panels import damaged
from lora_export.weights.quantized.stored import model_dtype
from lora_export.weights.quantized.weight import Form, QuantizedWeight, turned

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from lora_export.core.dtypes import DType
    from lora_export.core.tensors import Tensor
    from lora_export.weights.gguf.architectures import Architecture
    from lora_export.weights.gguf.gguf_parts import GgufParts

__all__ = ["METHOD", "gguf_weights", "stored_tensors"]

METHOD: Final = "gguf"
_NAME: Final = re.compile(r"(?:blk\.(?P<layer>\d{1,5})\.)?(?P<tensor>.+)\.(?P<leaf>weight|bias)")
_DERIVED: Final = re.compile(r"rope_(?:freqs|factors_long|factors_short)\.weight")
_SHOWN: Final = 5
_MATRIX: Final = 2


def stored_tensors(parts: GgufParts) -> dict[str, Tensor]:
    """Return the tensors as the files hold them; names of those in blocks end with their type.

    Bytes alone do not say what they stand for, and a fingerprint covers names.
    """
    return {_stored_name(parts, name): each for name, each in parts.tensors.items()}


def _stored_name(parts: GgufParts, name: str) -> str:
    kind = parts.types.get(name)
    return name if kind is None else f"{name}.{kind.name}"


def gguf_weights(parts: GgufParts, config: Mapping[str, Any]) -> dict[str, QuantizedWeight]:
    """Return the tensors of a file by their names in Hugging Face.

    Args:
        parts: The files.
        config: The config of the model.

    Raises:
        CheckpointError: A tensor is missing, or shapes contradict the config.
        UnsupportedError: A tensor that no module of the architecture has.
    """
    architecture, row = architecture_of(parts)
    named = _names(parts, architecture, row)
    dtype = model_dtype(config) or DTYPES["float32"]
    found: dict[str, QuantizedWeight] = {}
    for theirs, name in named.items():
        found[name] = _in_model(_weight(parts, theirs, name, dtype), row, config)
    _require_complete(parts, row, found)
    _require_shapes(parts, found, config)
    return found


def _names(parts: GgufParts, architecture: str, row: Architecture) -> dict[str, str]:
    """Return the names in Hugging Face by those in the file."""
    paths = (*row.whole, *(f"{row.layers}.0.{each}" for each in row.modules))
    table = tensor_names(architecture, paths)
    named: dict[str, str] = {}
    unknown: list[str] = []
    for name in sorted(parts.tensors):
        match = _NAME.fullmatch(name)
        first = None
        if match is not None:
            own = match["tensor"]
            first = table.get(own if match["layer"] is None else f"blk.0.{own}")
        if _DERIVED.fullmatch(name):
            continue
        if first is None or match is None:
            unknown.append(name)
            continue
        path = first
        if match["layer"] is not None:
            path = first.replace(f"{row.layers}.0.", f"{row.layers}.{int(match['layer'])}.")
        named[name] = f"{path}.{match['leaf']}"
    if unknown:
        msg = f"the base {str(parts.path)!r} has tensors that {architecture} has not:"
        hint = "Give the original checkpoint; docs/checkpoints.md says what is read."
        raise UnsupportedError(msg, items=first_few(unknown, _SHOWN), hint=hint)
    if architecture == "gpt2" and _is_tied(parts):
        named.pop("output.weight", None)
    return named


def _is_tied(parts: GgufParts) -> bool:
    """Return whether the output embedding is a copy of the input embedding."""
    stored = [parts.tensors.get(each) for each in ("token_embd.weight", "output.weight")]
    kinds = [parts.types.get(each) for each in ("token_embd.weight", "output.weight")]
    first, second = stored
    if first is None or second is None:
        return True
    return kinds[0] == kinds[1] and same_values(first, second)


def _weight(parts: GgufParts, stored: str, name: str, dtype: DType) -> QuantizedWeight:
    """Return a tensor as the file has it, under its name in Hugging Face."""
    tensor, kind = parts.tensors[stored], parts.types.get(stored)
    if not 1 <= len(tensor.shape) <= _MATRIX or 0 in tensor.shape:
        msg = f"tensor {stored!r} of the base has the shape {list(tensor.shape)}"
        raise damaged(f"{msg}; a matrix or a vector is expected")
    matrix, part = Matrix(tensor), Part(_stored_name(parts, stored), tensor)
    if kind is None:
        form = Form(METHOD, tensor.dtype.name, 8 * tensor.dtype.itemsize_bytes)
        return QuantizedWeight(name, dtype, tensor.shape, form, (part,), Floats(matrix))
    shape = (*tensor.shape[:-1], tensor.shape[-1] // kind.count_bytes * kind.values)
    form = Form(METHOD, kind.name, kind.bits, kind.values)
    return QuantizedWeight(name, dtype, shape, form, (part,), Blocks(matrix, kind))


def _in_model(
    weight: QuantizedWeight, row: Architecture, config: Mapping[str, Any]
) -> QuantizedWeight:
    """Return a tensor with what llama.cpp's converter did to its values undone."""
    module = weight.name.rpartition(".")[0]
    shape, codec = weight.shape, weight.codec
    if any(module.endswith(each) for each in row.reordered):
        heads = _heads(config, module)
        if shape[0] % (2 * heads):
            msg = f"tensor {weight.name!r} of the base has {shape[0]} rows"
            raise damaged(f"{msg}, which are not those of {heads} heads")
        size = shape[0] // heads
        codec = Reordered(codec, size) if len(shape) == _MATRIX else ReorderedVector(codec, size)
    if row.shifted and weight.name.endswith(row.shifted):
        codec = Shifted(codec)
    weight = replace(weight, codec=codec)
    leaf = module.rpartition(".")[2]
    input_first = CONV1D_MODULES.get(row.model_types[0], frozenset())
    return turned(weight) if leaf in input_first and len(shape) == _MATRIX else weight


def _heads(config: Mapping[str, Any], module: str) -> int:
    heads = config.get("num_attention_heads")
    if module.endswith("k_proj"):
        heads = config.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or heads <= 0:
        msg = f"the config of the base says num_attention_heads: {heads}"
        raise damaged(msg)
    return heads


def _require_complete(
    parts: GgufParts, row: Architecture, found: Mapping[str, QuantizedWeight]
) -> None:
    """Require every module of every layer, and the same biases in each."""
    layers = parts.metadata.get(f"{parts.metadata['general.architecture']}.block_count")
    count = layers if isinstance(layers, int) else 0
    if count > len(found):
        msg = f"the base {str(parts.path)!r} says that it has {count} layers"
        raise damaged(f"{msg}, and has {len(found)} tensors")
    prefix = f"{row.layers}."
    leaves = {
        name.removeprefix(prefix).partition(".")[2] for name in found if name.startswith(prefix)
    }
    leaves |= {f"{each}.weight" for each in row.modules}
    wanted = [f"{prefix}{layer}.{leaf}" for layer in range(count) for leaf in sorted(leaves)]
    wanted += [f"{each}.weight" for each in row.whole if each != "lm_head"]
    if lacking := [name for name in wanted if name not in found]:
        msg = f"the base {str(parts.path)!r} has no tensor for {lacking[0]!r}"
        raise damaged(f"{msg} ({len(lacking)} missing)" if len(lacking) > 1 else msg)
    known = {*wanted, *(f"{each}.{leaf}" for each in row.whole for leaf in ("weight", "bias"))}
    if extra := [name for name in found if name not in known]:
        msg = f"the base {str(parts.path)!r} has {extra[0]!r}, and says that it has {count} layers"
        raise damaged(msg)


def _require_shapes(
    parts: GgufParts, found: Mapping[str, QuantizedWeight], config: Mapping[str, Any]
) -> None:
    """Require the widths that the config says."""
    hidden = config.get("hidden_size", config.get("n_embd"))
    heads, keys = config.get("num_attention_heads"), config.get("num_key_value_heads")
    size = config.get("head_dim") or (hidden // heads if hidden and heads else None)
    inner = config.get("intermediate_size")
    rows = {
        "embed_tokens.weight": config.get("vocab_size"),
        ".q_proj.weight": heads * size if heads and size else None,
        ".k_proj.weight": (keys or heads) * size if heads and size else None,
        ".v_proj.weight": (keys or heads) * size if heads and size else None,
        ".gate_proj.weight": inner,
        ".up_proj.weight": inner,
        ".o_proj.weight": hidden,
        ".down_proj.weight": hidden,
        "layernorm.weight": hidden,
        "model.norm.weight": hidden,
    }
    for name, weight in found.items():
        wanted = next((value for end, value in rows.items() if name.endswith(end)), None)
        if wanted is not None and weight.shape[0] != wanted:
            msg = f"{name!r} of the base {str(parts.path)!r} has the shape {list(weight.shape)}"
            raise damaged(f"{msg}; by its metadata it has {wanted} rows")
