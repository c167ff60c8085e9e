"""Checkpoints, PEFT adapters and exports written by hand: no torch, milliseconds each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import helper
from safetensors.numpy import save_file

from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import (
    AdapterRecord,
    BaseRecord,
    GraphRecord,
    Manifest,
    ParameterUse,
    write_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["BERT_SHAPES", "save_adapter", "save_checkpoint", "save_export", "shapes_of_lora"]

Shapes = dict[str, tuple[int, ...]]

BERT_SHAPES: Final[Shapes] = {
    "embeddings.word_embeddings.weight": (20, 8),
    **{
        f"encoder.layer.{layer}.attention.self.{module}.{kind}": shape
        for layer in range(2)
        for module in ("query", "value")
        for kind, shape in (("weight", (8, 8)), ("bias", (8,)))
    },
}
"""A bare BERT of two layers: 20·8 + 4·(8·8 + 8) = 448 parameters."""


def save_checkpoint(
    folder: Path, shapes: Mapping[str, tuple[int, ...]] = BERT_SHAPES, **config: Any
) -> Path:
    """Write ``config.json`` and ``model.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": "bert", "architectures": ["BertModel"], **config}
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    save_file(_random(shapes), folder / "model.safetensors")
    return folder


def shapes_of_lora(modules: Mapping[str, tuple[int, int]] | None = None, rank: int = 2) -> Shapes:
    """Return the shapes of A ``[r, in]`` and B ``[out, r]`` for modules of ``(out, in)``."""
    chosen = modules or {
        f"bert.encoder.layer.{layer}.attention.self.{module}": (8, 8)
        for layer in range(2)
        for module in ("query", "value")
    }
    shapes: Shapes = {}
    for module, (outputs, inputs) in chosen.items():
        shapes[f"base_model.model.{module}.lora_A.weight"] = (rank, inputs)
        shapes[f"base_model.model.{module}.lora_B.weight"] = (outputs, rank)
    return shapes


def save_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None, **config: Any
) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` as PEFT does."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "some/base",
        "r": 2,
        "lora_alpha": 4,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    save_file(_random(shapes or shapes_of_lora()), folder / "adapter_model.safetensors")
    return folder


def save_export(folder: Path) -> Path:
    """Write an export of `BERT_SHAPES` with one adapter, ``a``; its graphs have no nodes."""
    (folder / "weights").mkdir(parents=True)
    save_file(
        _random({f"bert.{name}": shape for name, shape in BERT_SHAPES.items()}),
        folder / "weights" / "base.safetensors",
    )
    changed = "bert.encoder.layer.0.attention.self.query.weight"
    save_file(_random({changed: (8, 8)}), folder / "weights" / "a.safetensors")
    for name in ("base.onnx", "a.onnx"):
        model = helper.make_model(helper.make_graph([], name, [], []))
        (folder / name).write_bytes(model.SerializeToString())
    names = ("base.onnx", "weights/base.safetensors", "a.onnx", "weights/a.safetensors")
    files = {name: sha256_of_file(folder / name) for name in names}
    write_manifest(folder, _manifest(files))
    return folder


def _manifest(files: dict[str, str]) -> Manifest:
    weights = ["weights/base.safetensors"]
    return Manifest(
        tool="lora-export 0",
        base=BaseRecord(
            source="some/base",
            model_type="bert",
            model_class="BertForSequenceClassification",
            task="text-classification",
            dtype="float32",
            fingerprint="0" * 64,
            prefix="bert.",
        ),
        parameters={
            **{name: [_use(f"bert.{name}", shape)] for name, shape in BERT_SHAPES.items()},
            "classifier.weight": [_use("classifier.weight", (3, 8))],
        },
        graphs={
            "base": GraphRecord(
                mode="base",
                onnx="base.onnx",
                weights=weights,
                opset=18,
                sha256=files["base.onnx"],
                missing=["classifier.weight"],
            ),
            "a": GraphRecord(
                mode="merged",
                onnx="a.onnx",
                weights=[*weights, "weights/a.safetensors"],
                opset=18,
                sha256=files["a.onnx"],
                verification="pass",
            ),
        },
        adapters={
            "a": AdapterRecord(
                source="some/adapter",
                format="peft",
                rank=2,
                merged_from="checkpoint",
                tensors_total=8,
                tensors_applied=8,
                missing_in_base=[],
                sha256="1" * 64,
            )
        },
        files=files,
    )


def _use(name: str, shape: tuple[int, ...]) -> ParameterUse:
    return ParameterUse(
        graph="base",
        initializer=name,
        transform=[],
        dtype="float32",
        shape=list(shape),
        module="Linear",
    )


def _random(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
