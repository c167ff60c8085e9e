from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_export.graph.forms.wide_interface import with_float32_interface
from tests.graph.forms.running import close, empty_past, run, session
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


def test_images_go_in_and_logits_come_out_as_float32(tiny: TinyModels, tmp_path: Path) -> None:
    out, task = tmp_path / "out", "image-classification"
    base = tiny.base("vit", task)
    build(base, {"mine": tiny.adapter(base, task=task)}, out, dtype="float16")
    graph = (out / "mine.onnx").read_bytes()
    before, after = session(out, graph), session(out, with_float32_interface(graph))
    images = np.random.default_rng(0).standard_normal((2, 3, 24, 24)).astype(np.float16)
    expected = run(before, {"pixel_values": images})["logits"]
    found = run(after, {"pixel_values": images.astype(np.float32)})["logits"]
    assert (expected.dtype, found.dtype) == (np.float16, np.float32)
    assert close(found, expected.astype(np.float32), 1e-3)


def test_the_cache_stays_float16(tiny: TinyModels, tmp_path: Path) -> None:
    out, task = tmp_path / "out", "text-generation"
    base = tiny.base("llama", task)
    build(base, {"mine": tiny.adapter(base, task=task, labels_count=None)}, out, dtype="float16")
    opened = session(out, with_float32_interface((out / "mine.onnx").read_bytes()))
    ids = np.array([[5, 6, 7]])
    feeds = {"input_ids": ids, "attention_mask": ids * 0 + 1, "position_ids": ids - 5}
    found = run(opened, {**feeds, **empty_past(opened, 1, 2, 8, "float16")})
    assert {name: each.dtype for name, each in found.items()} == {
        name: np.float32 if name == "logits" else np.float16 for name in found
    }


def test_a_float32_graph_stays(tiny: TinyModels, tmp_path: Path) -> None:
    base = tiny.base("bert")
    build(base, {"mine": tiny.adapter(base)}, tmp_path / "out")
    graph = (tmp_path / "out" / "mine.onnx").read_bytes()
    assert with_float32_interface(graph) == graph
