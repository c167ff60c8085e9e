"""Decoders of newer opsets and with a static cache: every mode, verified, and text from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest

from lora_export.core.manifest import read_manifest
from lora_export.core.reports.report_model import as_json
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.models import save_tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

TASK = "text-generation"
ROOM = 32


@pytest.fixture(scope="module")
def base(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama with a tokenizer."""
    import shutil

    folder = tmp_path_factory.mktemp("llama") / "base"
    shutil.copytree(tiny.base("llama", TASK), folder)
    save_tiny_tokenizer(folder)
    return folder


@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_adapters_at_opset_24_on_a_static_cache_are_verified(
    tiny: TinyModels, base: Path, tmp_path: Path, mode: str
) -> None:
    adapters = {
        "one": tiny.adapter(base, task=TASK, seed=5),
        "two": tiny.adapter(base, task=TASK, seed=6, r=2, use_dora=True),
    }
    outcome = build(
        base, adapters, tmp_path / "out",
        task=TASK, mode=mode, opset=24, cache_length=ROOM, verify={"enabled": True},
    )  # fmt: skip
    manifest = outcome.manifest
    assert (manifest.base.cache, manifest.base.cache_length) == (True, ROOM)
    graphs = {name: graph.verification for name, graph in manifest.graphs.items()}
    assert set(graphs.values()) == {"pass"}, outcome.reports.parity
    base_row = as_json(outcome.reports.parity.graphs["base"])
    assert base_row["greedy"]["agreeing_tokens"] > 0
    assert base_row["greedy"]["clear_disagreements"] == 0
    for graph in manifest.graphs.values():
        model = onnx.load(tmp_path / "out" / graph.onnx, load_external_data=False)
        types = {node.op_type for node in model.graph.node}
        assert {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"} <= types
        assert model.opset_import[0].version == graph.opset == 24


def test_a_static_cache_gives_the_text_that_a_growing_one_gives(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts: dict[str, Any] = {}
    for name, flags in {"grows": [], "static": ["--cache-length", str(ROOM)]}.items():
        out = tmp_path / name
        asked = ["--base", base, "--task", TASK, *flags, "--out", out, "--quiet"]
        assert call(capsys, "export", *asked).code == 0
        result = call(capsys, "generate", out, "--prompt", "play some jazz", "--prompt", "play",
                      "--max-new-tokens", "40", "--json")  # fmt: skip
        assert result.code == 0, result.err
        texts[name] = [row["tokens"] for row in result.document["continuations"]]
    assert read_manifest(tmp_path / "static").base.cache_length == ROOM
    for grown, static in zip(texts["grows"], texts["static"], strict=True):
        assert 0 < len(static) <= ROOM
        assert grown[: len(static)] == static
    long = " ".join(["jazz"] * (ROOM + 1))
    refused = call(capsys, "generate", tmp_path / "static", "--prompt", long)
    assert refused.code == 2
    assert f"the static cache has positions for {ROOM}" in refused.err


def test_what_excludes_a_static_cache_is_said(
    tiny: TinyModels, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    both = call(capsys, "export", "--base", base, "--no-cache", "--cache-length", "8", "--out", out)
    assert both.code == 2
    assert "--cache-length" in both.err
    encoder = call(capsys, "export", "--base", tiny.base("bert"), "--cache-length", "8",
                   "--out", out)  # fmt: skip
    assert encoder.code == 2
    assert "--cache-length does not apply to the task" in encoder.err
    assert not out.exists()
