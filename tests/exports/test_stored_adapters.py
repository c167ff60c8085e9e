"""The storage of each adapter of an export, read from a manifest of every mode."""

from __future__ import annotations

from typing import Any

import pytest

from lora_export.core.errors import AdapterError
from lora_export.core.manifest import Manifest
from lora_export.core.modes import Mode
from lora_export.exports.stored_adapters import find_stored, mode_of, stored_adapter

SHA = "0" * 64


def graph(mode: str, onnx: str, *weights: str) -> dict[str, Any]:
    return {
        "mode": mode, "onnx": onnx, "weights": ["weights/base.safetensors", *weights],
        "opset": 20, "sha256": SHA, "golden": f"golden/{mode}.npz",
    }  # fmt: skip


def adapter(**held: Any) -> dict[str, Any]:
    return {
        "source": "a", "format": "peft", "rank": 4, "merged_from": "checkpoint",
        "tensors_total": 1, "tensors_applied": 1, "missing_in_base": [], "sha256": SHA, **held,
    }  # fmt: skip


PACK = {"safetensors": "adapters/a.safetensors", "onnx_adapter": "adapters/a.onnx_adapter",
        "base": SHA, "verification": "pass", "golden": "golden/a.npz"}  # fmt: skip
ROW = {"row": 3, "verification": "ambiguous"}
OWN = graph("merged", "a.onnx", "weights/a.safetensors")


def manifest(graphs: dict[str, Any], **held: Any) -> Manifest:
    base = {"source": "b", "model_type": "m", "model_class": "M", "task": "t",
            "dtype": "float32", "fingerprint": SHA}  # fmt: skip
    return Manifest.model_validate(
        {
            "tool": "t", "base": base, "parameters": {}, "files": {},
            "graphs": {"base": graph("base", "base.onnx"), **graphs},
            "adapters": {"a": adapter(**held)},
        }
    )  # fmt: skip


EXPORTS = {
    Mode.MERGED: manifest({"a": OWN}),
    Mode.SWAPPABLE: manifest({"swappable": graph("swappable", "swappable.onnx")}, pack=PACK),
    Mode.BATCHED: manifest({"batched": graph("batched", "batched.onnx")}, row=ROW),
}
FACTS = {
    Mode.MERGED: ("a", None, None, ("a.onnx", "weights/a.safetensors"), "unverified"),
    Mode.SWAPPABLE: (
        "swappable", "adapters/a.safetensors", None,
        ("adapters/a.safetensors", "adapters/a.onnx_adapter"), "pass",
    ),
    Mode.BATCHED: ("batched", None, 3, (), "ambiguous"),
}  # fmt: skip


@pytest.mark.parametrize("mode", EXPORTS)
def test_an_adapter_is_found_where_its_mode_keeps_it(mode: Mode) -> None:
    export = EXPORTS[mode]
    found = stored_adapter(export, "a")
    assert (mode_of(export), found.mode) == (mode, mode)
    assert export.graphs[found.graph].mode is mode
    verification = found.record.verification
    assert (found.graph, found.pack, found.row, found.files, verification) == FACTS[mode]


@pytest.mark.parametrize("mode", EXPORTS)
def test_the_base_has_a_graph_of_its_own_in_every_mode(mode: Mode) -> None:
    found = stored_adapter(EXPORTS[mode], "base")
    assert (found.mode, found.graph) == (Mode.BASE, "base")
    assert found.files == ("base.onnx", "weights/base.safetensors")
    assert found.record.golden == "golden/base.npz"


def test_an_export_of_the_base_alone_takes_merged_adapters() -> None:
    alone = manifest({}).model_copy(update={"adapters": {}})
    assert mode_of(alone) is Mode.MERGED


@pytest.mark.parametrize("name", ["b", "swappable", "batched"])
def test_what_is_no_adapter_is_not_found(name: str) -> None:
    export = EXPORTS[Mode.SWAPPABLE]
    assert find_stored(export, name) is None
    with pytest.raises(AdapterError, match=f"no adapter '{name}'"):
        stored_adapter(export, name)
