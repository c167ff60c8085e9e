"""Modes are their words in files, flags and messages, and each has a row in every table."""

from __future__ import annotations

import json

import pytest

from lora_export.core.adapter_names import is_adapter_name
from lora_export.core.manifest import GraphRecord, Manifest, manifest_bytes
from lora_export.core.modes import (
    ADAPTER_MODES,
    BASE_GRAPH,
    BATCHED_GRAPH,
    SHARED_GRAPHS,
    SWAPPABLE_GRAPH,
    Mode,
    ServingMode,
)
from lora_export.exports.change_adapters import CHANGES
from lora_export.runtime.loading_modes import LOADING
from lora_export.triton.serving.index import WAYS
from lora_export.triton.serving.runners import LOADERS
from lora_export.triton.serving_modes import GRAPH_SERVING, SERVING

WORDS = {
    Mode: ["base", "merged", "swappable", "batched"],
    ServingMode: ["merged", "swappable", "batched", "merge_at_load"],
}


@pytest.mark.parametrize("modes", WORDS)
def test_a_mode_reads_as_its_word_wherever_it_is_written(
    modes: type[Mode | ServingMode],
) -> None:
    assert [str(each) for each in modes] == WORDS[modes]
    for each, word in zip(modes, WORDS[modes], strict=True):
        assert (f"{each}", f"{each!r}", f"{each:>14}") == (word, repr(word), f"{word:>14}")
        assert json.dumps({each: each}) == json.dumps({word: word})
        assert modes(word) is each
        assert {word: 1}[each] == {each: 1}[word] == 1


def test_the_manifest_holds_modes_as_it_always_did() -> None:
    text = (
        '{"format_version": 1, "tool": "t", "base": {"source": "b", "model_type": "m", '
        '"model_class": "M", "task": "t", "dtype": "float32", "fingerprint": "' + "0" * 64 + '"}, '
        '"parameters": {}, "adapters": {}, "files": {}, "graphs": {'
        + ", ".join(
            f'"{name}": {{"mode": "{mode}", "onnx": "{name}.onnx", "weights": [], "opset": 20, '
            f'"sha256": "{"0" * 64}"}}'
            for name, mode in {
                "base": "base", "own": "merged", "swappable": "swappable", "batched": "batched",
            }.items()
        )
        + "}}"
    )  # fmt: skip
    manifest = Manifest.model_validate_json(text)
    assert manifest.base_graph is manifest.graphs["base"]
    modes = {name: record.mode for name, record in manifest.graphs.items()}
    assert list(modes.values()) == list(Mode)
    assert [n for n, each in manifest.graphs.items() if each.is_shared] == ["swappable", "batched"]
    written = json.loads(manifest_bytes(manifest))["graphs"]
    assert {name: record["mode"] for name, record in written.items()} == {
        "base": "base", "own": "merged", "swappable": "swappable", "batched": "batched",
    }  # fmt: skip


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'base', 'merged', 'swappable' or 'batched'"):
        GraphRecord.model_validate(
            {"mode": "stacked", "onnx": "g.onnx", "weights": [], "opset": 20, "sha256": "0" * 64}
        )


def test_the_names_of_graphs_are_reserved() -> None:
    assert (BASE_GRAPH, *SHARED_GRAPHS) == ("base", SWAPPABLE_GRAPH, BATCHED_GRAPH)
    assert {type(each) for each in (BASE_GRAPH, *SHARED_GRAPHS)} == {str}
    assert not any(is_adapter_name(each) for each in ("base", "swappable", "batched", "model"))
    assert is_adapter_name("merged")


def test_every_mode_has_a_row_in_the_tables_of_each_layer() -> None:
    assert tuple(CHANGES) == tuple(GRAPH_SERVING) == ADAPTER_MODES
    for table in (LOADING, SERVING, WAYS):
        assert list(table) == list(ServingMode)
    shared = {mode for mode, row in SERVING.items() if not row.own_sessions}
    assert {way for way, row in WAYS.items() if row.shares_session} == shared
    assert {way for way, row in WAYS.items() if row.mixes_adapters} == {
        mode for mode, row in SERVING.items() if row.rows
    }
    assert list(LOADERS) == [each for each in WAYS if not WAYS[each].mixes_adapters]
