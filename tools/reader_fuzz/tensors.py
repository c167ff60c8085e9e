"""Readers of tensors: safetensors, PyTorch's archives, GGUF, and the formats of adapters."""

from __future__ import annotations

import io
import json
import struct
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from lora_export.adapters.formats.delta import DELTA
from lora_export.adapters.formats.detect import is_adapter, read_adapter
from lora_export.core.gguf_file import read_gguf
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import read_all
from lora_export.core.torch_file import read_torch_file
from lora_export.ondevice.bundle.tensor_values import read_values
from lora_export.weights.checkpoint import open_checkpoint
from tools.reader_fuzz.formats import (
    mutate_header,
    mutate_layout,
    safetensors_bytes,
    zip_mutator,
)
from tools.reader_fuzz.mutate_bytes import mutate_bytes, with_words
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.tensors import Tensor
    from tools.reader_fuzz.reader import Files, Mutator

__all__ = ["TENSORS"]

_SAFETENSORS: Final[tuple[Mutator, ...]] = (mutate_bytes, mutate_header, mutate_layout)
_PICKLE: Final = with_words((
    b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"cos\nsystem\n", b"R",
    b"b", b"}", b"(",
    b"t", b"Q", b"\x8a\x08" + b"\xff" * 8, b"\x8d" + b"\xff" * 8, b"X\xff\xff\xff\x7f",
    b"J\xff\xff\xff\xff",
    b"K\x00", b"h\x00", b"q\x00", b".", b"\x80\x05", b"\x95" + b"\xff" * 8,
))  # fmt: skip
_TORCH: Final[tuple[Mutator, ...]] = (
    mutate_bytes,
    zip_mutator({"data.pkl": (mutate_bytes, _PICKLE), "byteorder": (mutate_bytes,)}),
)
_GGUF: Final = with_words((
    struct.pack("<I", 8), struct.pack("<I", 9), struct.pack("<II", 9, 9), struct.pack("<IIQ", 9,
    8, 2**40),
    struct.pack("<Q", 2**63), struct.pack("<Q", 2**64 - 1), b"GGUF", b"general.alignment",
    b"blk.0.attn_q",
    b".weight.lora_a", b"adapter.lora.alpha", b"general.architecture", b"llama",
))  # fmt: skip
_SETTINGS: Final[tuple[Mutator, ...]] = (mutate_json,)


def _read_values(tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        read_all(tensor)


def _values(*shape: int) -> Any:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def _torch_bytes(value: object, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


def _safetensors(_fixed: Path) -> Target:
    arrays = {
        "a.weight": _values(4, 3),
        "a.bias": _values(4).astype(np.float16),
        "empty": _values(0, 3),
        "count": np.array(3),
    }
    seeds = (
        {"x.safetensors": safetensors_bytes(arrays, {"format": "pt"})},
        {"x.safetensors": safetensors_bytes({"one": _values(2)})},
    )
    return Target(
        seeds,
        {"x.safetensors": _SAFETENSORS},
        lambda folder: _read_values(read_header(folder / "x.safetensors")[0]),
    )


def _on_device(fixed: Path) -> Target:
    """Return the reader that bundles bring."""
    known = _safetensors(fixed)
    return Target(known.seeds, known.mutators, lambda folder: read_values(folder / "x.safetensors"))


def _torch(_fixed: Path) -> Target:
    whole = torch.arange(12, dtype=torch.float32).reshape(4, 3)
    state = {"a": whole, "b": whole[1:], "t": whole.T, "h": whole.half(), "s": torch.tensor(1.5)}
    seeds = (
        {"x.bin": _torch_bytes(state)},
        {"x.bin": _torch_bytes({"a": whole})},
        {"old.bin": _torch_bytes(state, old=True)},
    )
    return Target(seeds, {"x.bin": _TORCH, "old.bin": (mutate_bytes, _PICKLE)}, _read_torch)


def _read_torch(folder: Path) -> None:
    (path,) = folder.iterdir()
    _read_values(read_torch_file(path))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf_bytes(arrays: Mapping[str, Any], values: Mapping[str, object]) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(values))
    for key, value in values.items():
        out += _text(key)
        if isinstance(value, str):
            out += struct.pack("<I", 8) + _text(value)
        elif isinstance(value, float):
            out += struct.pack("<If", 6, value)
        elif isinstance(value, list):
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        else:
            out += struct.pack("<II", 4, value)
    offset = 0
    for name, each in arrays.items():
        out += _text(name) + struct.pack("<I", each.ndim)
        out += struct.pack(f"<{each.ndim}Q", *each.shape[::-1]) + struct.pack("<IQ", 0, offset)
        offset += each.nbytes + -each.nbytes % 32
    out += bytes(-len(out) % 32)
    return out + b"".join(each.tobytes() + bytes(-each.nbytes % 32) for each in arrays.values())


_GGUF_SETTINGS: Final[dict[str, object]] = {
    "general.type": "adapter",
    "adapter.type": "lora",
    "general.architecture": "llama",
    "adapter.lora.alpha": 4.0,
    "llama.attention.head_count": 2,
    "general.tags": ["a", "b"],
    "general.alignment": 32,
}


def _gguf_adapter(module: str) -> bytes:
    shape = (8, 2) if module == "token_embd" else (2, 8)
    arrays = {f"{module}.weight.lora_a": _values(*shape), f"{module}.weight.lora_b": _values(8, 2)}
    return _gguf_bytes(arrays, _GGUF_SETTINGS)


def _gguf(_fixed: Path) -> Target:
    return Target(
        ({"x.gguf": _gguf_adapter("blk.0.attn_q")},),
        {"x.gguf": (mutate_bytes, _GGUF)},
        lambda folder: _read_values(read_gguf(folder / "x.gguf")[0]),
    )


_BASE: Final = {
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "hidden_size": 8,
}
_NAMES: Final[dict[str, tuple[str, str, str | None]]] = {
    "kohya": ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
              "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
              "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"),
    "mlx": ("model.layers.0.self_attn.q_proj.lora_a", "model.layers.0.self_attn.q_proj.lora_b",
    None),
    "loralib": ("encoder.layer.0.attention.self.query.lora_A",
                "encoder.layer.0.attention.self.query.lora_B", "classifier.weight"),
    "torchtune": ("layers.0.attn.q_proj.lora_a.weight", "layers.0.attn.q_proj.lora_b.weight",
                  "layers.0.attn.q_proj.magnitude"),
    "peft": ("base_model.model.layer.0.query.lora_A.weight",
             "base_model.model.layer.0.query.lora_B.weight", "base_model.model.classifier.weight"),
}  # fmt: skip
"""Names of A, of B, and of something beside them in each format."""

_CONFIGS: Final[dict[str, Mapping[str, object]]] = {
    "mlx": {
        "fine_tune_type": "lora",
        "lora_parameters": {"scale": 2.0, "rank": 2},
        "model": "a",
    },
    "torchtune": {"lora_alpha": 4, "base_model_name_or_path": "a"},
    "peft": {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "bias": "none",
        "modules_to_save": ["classifier"], "rank_pattern": {}, "alpha_pattern": {"query": 8},
        "use_dora": False, "use_rslora": False, "lora_bias": False, "fan_in_fan_out": False,
        "task_type": "SEQ_CLS", "base_model_name_or_path": "a", "inference_mode": True,
        "layers_to_transform": None, "layers_pattern": None, "init_lora_weights": True,
        "trainable_token_indices": None, "target_parameters": None, "exclude_modules": None,
    },
}  # fmt: skip
"""Settings beside the tensors."""

_PICKLED: Final = frozenset({"loralib", "torchtune"})
"""Formats that are PyTorch's files."""

_FILE: Final = "adapter_model.safetensors"


def _arrays(kind: str) -> dict[str, Any]:
    a, b, other = _NAMES[kind]
    turned = kind == "mlx"
    arrays = {
        a: _values(*((8, 2) if turned else (2, 8))),
        b: _values(*((2, 8) if turned else (8, 2))),
    }
    if other is not None:
        arrays[other] = np.float32(4).reshape(()) if kind == "kohya" else _values(8)
    return arrays


def _adapter(kind: str, _fixed: Path) -> Target:
    files = {_FILE: safetensors_bytes(_arrays(kind), {"format": "pt"})}
    if kind in _CONFIGS:
        files["adapter_config.json"] = json.dumps(_CONFIGS[kind]).encode()
    seeds: list[Files] = [files]
    if kind in _PICKLED:
        state = {name: torch.from_numpy(each) for name, each in _arrays(kind).items()}
        rest = {name: data for name, data in files.items() if name != _FILE}
        seeds.append({"adapter.pt": _torch_bytes(state), **rest})
    return Target(
        tuple(seeds),
        {_FILE: _SAFETENSORS, "adapter_config.json": _SETTINGS, "adapter.pt": _TORCH},
        partial(_read_adapter, kind),
    )


def _gguf_file(_fixed: Path) -> Target:
    seeds = tuple({"x.gguf": _gguf_adapter(name)} for name in ("blk.0.attn_q", "token_embd"))
    return Target(seeds, {"x.gguf": (mutate_bytes, _GGUF)}, partial(_read_adapter, "gguf"))


def _delta(_fixed: Path) -> Target:
    """Return the reader of whole tensors: one file, or a fine-tuned checkpoint in shards."""
    one, two = {"a.weight": _values(4, 2)}, {"model.a.weight": _values(4, 2), "b": _values(2)}
    index = {"weight_map": dict.fromkeys(one, "one.safetensors")
             | dict.fromkeys(two, "two.safetensors")}  # fmt: skip
    files = {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "one.safetensors": safetensors_bytes(one), "two.safetensors": safetensors_bytes(two),
        "config.json": b"{}",
    }  # fmt: skip
    seeds: tuple[Files, ...] = ({"one.safetensors": files["one.safetensors"]}, files)
    tables = ("config.json", "model.safetensors.index.json")
    mutators = {name: _SETTINGS if name in tables else _SAFETENSORS for name in files}
    return Target(seeds, mutators, _read_delta)


def _read_delta(folder: Path) -> None:
    adapter = read_adapter(folder, name="one", source="one", format=DELTA)
    _read_values({each.parameter: each.tensor for each in adapter.saved})


def _read_adapter(kind: str, folder: Path) -> None:
    is_adapter(folder)
    alpha = 4.0 if kind == "loralib" else None
    place = folder / "x.gguf" if kind == "gguf" else folder
    adapter = read_adapter(place, name="one", source="one", alpha=alpha, base_config=_BASE)
    _read_values({tensor.name: tensor for tensor in adapter.tensors})


def _checkpoint(_fixed: Path) -> Target:
    """Return the reader of a base in shards."""
    config = json.dumps(
        {"model_type": "bert", "hidden_size": 8, "architectures": ["BertModel"]}
    ).encode()
    one, two = {"a.weight": _values(4, 2)}, {"b.weight": _values(2), "LayerNorm.gamma": _values(2)}
    index = {
        "weight_map": {
            **dict.fromkeys(one, "one.safetensors"),
            **dict.fromkeys(two, "two.safetensors"),
        }
    }
    files = {
        "config.json": config,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "one.safetensors": safetensors_bytes(one),
        "two.safetensors": safetensors_bytes(two),
    }
    mutators: dict[str, tuple[Mutator, ...]] = {
        "config.json": _SETTINGS,
        "model.safetensors.index.json": _SETTINGS,
        "one.safetensors": _SAFETENSORS,
    }
    return Target((files,), mutators, lambda folder: _read_values(open_checkpoint(folder).tensors))


TENSORS: Final[Mapping[str, Reader]] = {
    "safetensors": Reader(_safetensors),
    "safetensors-device": Reader(_on_device),
    "torch": Reader(_torch, slowness=20),
    "gguf": Reader(_gguf),
    "checkpoint": Reader(_checkpoint),
    "adapter-gguf": Reader(_gguf_file),
    "adapter-delta": Reader(_delta),
    **{
        f"adapter-{kind}": Reader(partial(_adapter, kind), slowness=4 if kind in _PICKLED else 1)
        for kind in _NAMES
    },
}
"""The readers of tensors."""
