"""The pair of an export in optimum's form: both branches against torch, the weights untouched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from lora_export.core.errors import UnsupportedError
from lora_export.graph.forms.empty_past import with_any_empty_past
from lora_export.graph.forms.merged_decoder import merged_pair
from tests.cli.exports import peft_model
from tests.graph.forms.running import close, empty_past, run, session
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TEXT, SPEECH = "text2text-generation", "automatic-speech-recognition"
CASES = {
    "t5": ("t5", TEXT, {}),
    "t5-wide": ("t5", TEXT, {"d_kv": 6, "num_heads": 3}),
    "bart": ("bart", TEXT, {"forced_eos_token_id": None}),
    "whisper": ("whisper", SPEECH, {}),
}


@pytest.fixture(scope="module", params=[
    "t5-wide", *(pytest.param(each, marks=pytest.mark.slow) for each in ("t5", "bart", "whisper"))
])  # fmt: skip
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def exported(
    case: str, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    kind, task, settings = CASES[case]
    base = tiny.base(kind, task, **settings)
    adapter = tiny.adapter(base, task=task, labels_count=None, strength=0.2)
    out = tmp_path_factory.mktemp(case) / "out"
    build(base, {"mine": adapter}, out)
    return base, adapter, out


def pair_of(out: Path, name: str = "mine") -> tuple[bytes, bytes]:
    encoder, decoder = (
        (out / f"{part}.{name}.onnx").read_bytes() for part in ("encoder", "decoder")
    )
    merged = merged_pair(encoder, decoder)
    return merged[0], with_any_empty_past(merged[1])


def example(task: str) -> dict[str, Any]:
    random = np.random.default_rng(0)
    if task == SPEECH:
        return {"input_features": random.standard_normal((3, 8, 40)).astype(np.float32)}
    mask = np.ones((3, 9), np.int64)
    mask[1, 6:] = mask[2, :5] = 0
    return {"input_ids": random.integers(3, 200, (3, 9)), "attention_mask": mask}


def test_first_and_next_tokens_are_those_of_torch(
    case: str, exported: tuple[Path, Path, Path]
) -> None:
    task = CASES[case][1]
    base, adapter, out = exported
    feeds = example(task)
    ids = np.random.default_rng(1).integers(3, 200, (3, 7))
    with torch.inference_mode():
        expected = peft_model(base, adapter, task).get_base_model()(
            **{key: torch.tensor(value) for key, value in feeds.items()},
            decoder_input_ids=torch.tensor(ids),
        )
    first, second = (session(out, graph) for graph in pair_of(out))
    encoded = run(first, feeds)
    assert list(encoded) == ["last_hidden_state"]
    fixed = {"encoder_hidden_states": encoded["last_hidden_state"]}
    if task == TEXT:
        fixed["encoder_attention_mask"] = feeds["attention_mask"]
    past = empty_past(second, 3, heads=5, width=1)
    for start, end in ((0, 3), (3, 4), (4, 7)):
        fixed["use_cache_branch"] = np.array([start > 0])
        outputs = run(second, {"input_ids": ids[:, start:end], **fixed, **past})
        assert close(outputs.pop("logits"), expected.logits[:, start:end].numpy()), start
        if start:  # then nothing is computed of the encoder's states any more
            fixed["encoder_hidden_states"] = np.full_like(encoded["last_hidden_state"], np.nan)
        past = {key.replace("present.", "past_key_values."): each for key, each in outputs.items()}


def test_pasts_go_by_layers_and_the_encoder_keeps_its_weights_only(
    exported: tuple[Path, Path, Path],
) -> None:
    encoder, decoder = (onnx.load_model_from_string(each) for each in pair_of(exported[2]))
    ends = [f"{part}.{what}" for part in ("decoder", "encoder") for what in ("key", "value")]
    order = [f"{layer}.{end}" for layer in range(2) for end in ends]
    names = [each.name for each in decoder.graph.input]
    assert names[-1] == "use_cache_branch"
    assert names[-9:-1] == [f"past_key_values.{each}" for each in order]
    assert [each.name for each in decoder.graph.output] == [
        "logits", *(f"present.{each}" for each in order)
    ]  # fmt: skip
    outside = [each.name for each in encoder.graph.initializer if each.external_data]
    assert outside
    assert not [name for name in outside if ".layers." in name and "encoder" not in name]
    held = {each.name: each for each in decoder.graph.initializer}
    source = onnx.load(exported[2] / "encoder.mine.onnx", load_external_data=False)
    moved = {each.name: each for each in source.graph.initializer if each.external_data}
    assert set(moved) - set(outside)
    for name in set(moved) - set(outside):
        assert held[name] == moved[name], name


@pytest.mark.parametrize("weights", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_a_quantized_pair_computes_what_it_did(
    weights: str, tiny: TinyModels, tmp_path: Path
) -> None:
    base = tiny.base("t5", TEXT)
    adapter = tiny.adapter(base, task=TEXT, labels_count=None)
    out = build(base, {"mine": adapter}, tmp_path / "out", quantize={"weights": weights}).output
    feeds, ids = example(TEXT), np.array([[5, 6], [7, 8], [9, 10]])
    before, decoder = (session(out, (out / f"{part}.mine.onnx").read_bytes())
                       for part in ("encoder", "decoder"))  # fmt: skip
    encoded = run(before, feeds)
    hidden = encoded.pop("last_hidden_state")
    past = {name.replace("present.", "past_key_values."): each for name, each in encoded.items()}
    fixed = {"input_ids": ids, "encoder_attention_mask": feeds["attention_mask"]}
    wanted = run(decoder, {**fixed, **empty_past(decoder, 3, 4, 8), **past})
    first, second = (session(out, graph) for graph in pair_of(out))
    assert close(run(first, feeds)["last_hidden_state"], hidden, 1e-6)
    more = {"encoder_hidden_states": hidden, "use_cache_branch": np.array([False])}
    found = run(second, {**fixed, **more, **empty_past(second, 3, 4, 8)})
    assert close(found["logits"], wanted["logits"], 1e-4)
    assert all(close(found[name], each, 1e-4) for name, each in encoded.items())


def test_equal_pairs_give_equal_bytes(exported: tuple[Path, Path, Path]) -> None:
    assert pair_of(exported[2]) == pair_of(exported[2])
    assert pair_of(exported[2]) != pair_of(exported[2], "base")


def test_graphs_that_are_no_pair_are_refused(exported: tuple[Path, Path, Path]) -> None:
    encoder, decoder = (
        (exported[2] / f"{part}.base.onnx").read_bytes() for part in ("encoder", "decoder")
    )
    with pytest.raises(UnsupportedError, match="does not return what the decoder's reads"):
        merged_pair(decoder, encoder)
    changed = onnx.load_model_from_string(encoder)
    last = next(node for node in changed.graph.node if "present.0.encoder.key" in node.output)
    inner = next(
        node for node in changed.graph.node if node.op_type == "MatMul"
        and "last_hidden_state" not in node.input and last.input[0] not in node.output
    )  # fmt: skip
    reader = next(node for node in changed.graph.node if "last_hidden_state" in node.input)
    reader.input[list(reader.input).index("last_hidden_state")] = inner.input[0]
    with pytest.raises(UnsupportedError, match=r"follow from .* of the encoder too"):
        merged_pair(changed.SerializeToString(), decoder)
