"""Decoders in ONNX Runtime's form against torch: prefill, steps, padding, buffers, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.graph.ort_form.ort_template import ort_template
from lora_export.ondevice.judge.decoding import run_in_pieces
from lora_export.runtime.ort import OrtRunner
from lora_export.verification.inputs.random_inputs import make_cases
from tests.graph.ort_form.decoders import CONFIGS, OrtDecoderGraph, traced
from tests.helpers.slow import but_the_first

LAYERS = 3
ROTATED = {"gpt2": 0, "stablelm": 0, "phi": 0}
"""Attentions that rotate, where not all do: no rotation, or of 4 or 8 of 16."""
PACKED = {"gpt2": LAYERS, "phi3": LAYERS}
WINDOWS = {"gemma2": (4,), "gemma3": (4,), "mistral": (4,)}


def error_of(actual, expected):
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> OrtDecoderGraph:
    return OrtDecoderGraph("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("kind", but_the_first(CONFIGS, slow=4))
def test_a_family_computes_what_torch_computes(kind: str, tmp_path: Path, request) -> None:
    """Case 1 to 6 of the attentions and 1 to 3 of the norms, as the families have them."""
    graph: Any = (
        request.getfixturevalue("llama") if kind == "llama" else OrtDecoderGraph(kind, tmp_path)
    )
    applied = graph.applied
    assert graph.counts["GroupQueryAttention"] == applied.attentions == LAYERS
    assert applied.rotated == ROTATED.get(kind, LAYERS)
    assert applied.packed == PACKED.get(kind, 0)
    assert applied.windows == WINDOWS.get(kind, ())
    assert applied.skip_norms
    assert ("position_ids" in graph.signature.input_names) == (kind in ROTATED)
    assert not {"Attention", "RMSNormalization", "Softmax"} & set(graph.counts)
    left, right = (
        make_cases(
            graph.config, graph.signature, seed=0, left_padding=side,
            shapes=((1, 12), (3, 9), (2, 1), (4, 33)),
        )
        for side in (True, False)
    )  # fmt: skip
    for case in (*left, *right):
        text = {name: torch.tensor(v) for name, v in case.feeds.items() if "past" not in name}
        with torch.inference_mode():
            expected = graph.model(**text, use_cache=False).logits.numpy()[case.mask]
        for actual in (
            graph.run(case.feeds)["logits"],
            run_in_pieces(graph, case.feeds, "logits"),
        ):
            assert error_of(actual[case.mask], expected) < 2e-6


def test_the_guide_says_what_of_each_family_has_operators() -> None:
    text = Path("docs/genai.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()
            if line.startswith("|") and line.count("|") == 5]  # fmt: skip
    stated = {row[0].partition(" (")[0].lower().replace(" ", "").replace("-", ""): row[1:]
              for row in rows[2:]}  # fmt: skip
    for kind in CONFIGS:
        rotated = {"gpt2": "none"}.get(kind, "before" if kind in ROTATED else "yes")
        packed, windows = ("yes" if kind in table else "" for table in (PACKED, WINDOWS))
        assert stated[kind.replace("_", "")] == [rotated, packed, windows], kind
    assert len(stated) == len(CONFIGS)


def test_padding_anywhere_changes_nothing_of_a_row(llama) -> None:
    """Tokens with holes between them, in one batch, then steps behind them."""
    masks = np.array([[1, 1, 0, 0, 1], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    ids = np.random.default_rng(0).integers(3, 60, (4, 7))
    steps = np.ones((4, 2), np.int64)
    mask = np.concatenate([masks, steps], axis=1)
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    past = {n.name: np.zeros((4, 2, 0, 16), np.float32) for n in llama.session.get_inputs()
            if "past" in n.name}  # fmt: skip
    found = []
    for start, end in ((0, 5), (5, 6), (6, 7)):
        feeds = {"input_ids": ids[:, start:end], "attention_mask": mask[:, :end],
                 "position_ids": positions[:, start:end], **past}  # fmt: skip
        outputs = llama.run(feeds)
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        found.append(outputs["logits"])
    logits = np.concatenate(found, axis=1)
    for row in range(4):
        kept = mask[row].astype(bool)
        with torch.inference_mode():
            expected = llama.model(torch.tensor(ids[row][kept][None])).logits.numpy()[0]
        assert error_of(logits[row][kept], expected) < 2e-6


def test_several_new_positions_behind_a_past(llama) -> None:
    ids = np.random.default_rng(1).integers(3, 60, (1, 11))
    whole = {"input_ids": ids, "attention_mask": np.ones((1, 11), np.int64),
             "position_ids": np.arange(11)[None]}  # fmt: skip
    past = {n.name: np.zeros((1, 2, 0, 16), np.float32) for n in llama.session.get_inputs()
            if "past" in n.name}  # fmt: skip
    expected = llama.run({**whole, **past})["logits"]
    first = llama.run({**{n: v[:, :6] for n, v in whole.items()}, **past})
    kept = {name: first[name.replace("past_key_values", "present")] for name in past}
    second = llama.run({"input_ids": ids[:, 6:], "attention_mask": whole["attention_mask"],
                        "position_ids": whole["position_ids"][:, 6:], **kept})  # fmt: skip
    assert error_of(second["logits"], expected[:, 6:]) < 2e-6


def test_a_text_ends_where_the_positions_of_the_model_do(llama) -> None:
    runner = OrtRunner(llama.path)
    past = {name: np.zeros((1, 2, 0, 16), np.float32) for name in runner.inputs if "past" in name}
    for length in (64, 65):
        text = {"input_ids": np.full((1, length), 5), "attention_mask": np.ones((1, length), int)}
        if length == 64:
            assert np.isfinite(runner.run({**text, **past})["logits"]).all()
            continue
        with pytest.raises(UsageError, match="longer than the model has positions"):
            runner.run({**text, **past})


def test_tables_of_positions_are_computed_once(llama) -> None:
    """Nothing of angles is left in the graph that ONNX Runtime runs, and few bytes in the file."""
    optimized = onnx.load(llama.path.with_name("optimized.onnx"), load_external_data=False)
    assert not {"Cos", "Sin"} & {node.op_type for node in optimized.graph.node}
    assert llama.path.stat().st_size < 20_000


def test_equal_graphs_have_equal_bytes(llama) -> None:
    template = traced(CONFIGS["llama"]())
    first, _ = ort_template(template, 64)
    second, _ = ort_template(template, 64)
    assert first.onnx_bytes == second.onnx_bytes
    assert {each.name for each in first.parameters} == {e.name for e in template.parameters}


def test_without_a_number_of_positions_the_rotation_stays_outside(llama) -> None:
    found, applied = ort_template(traced(CONFIGS["llama"]()), None)
    assert (applied.attentions, applied.rotated, found.opset) == (LAYERS, 0, 23)


@pytest.mark.slow
def test_biases_have_no_such_operator() -> None:
    config = transformers.BloomConfig(vocab_size=60, hidden_size=64, n_layer=2, n_head=4)
    with pytest.raises(UnsupportedError, match="no attention") as caught:
        ort_template(traced(config), 64)
    assert "--graph-form" in str(caught.value.hint)
