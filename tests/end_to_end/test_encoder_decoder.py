"""T5, BART and Whisper: encoder and decoder over one weight file, with adapters, against PEFT."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers

from lora_export.core.errors import ParityError, UnsupportedError, UsageError
from lora_export.core.safetensors_file import read_header
from lora_export.runtime.session import open_export
from tests.cli.exports import assert_intact, manifest_of, peft_model, report
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.models import load_tiny, save_tiny_base

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

TEXT, SPEECH = "text2text-generation", "automatic-speech-recognition"
TASKS = {"t5": TEXT, "bart": TEXT, "whisper": SPEECH}
PAST = "past_key_values."


@pytest.fixture(scope="module", params=TASKS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folders(
    kind: str, tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Path]:
    """Return a base, an adapter, and the verified export of both."""
    task = TASKS[kind]
    text = {"tokenizer": True, "forced_eos_token_id": None} if task == TEXT else {}
    base = tiny.base(kind, task, **text)
    adapter = tiny.adapter(base, task=task, labels_count=None, strength=0.2)
    out = tmp_path_factory.mktemp(kind) / "out"
    build(base, {"mine": adapter}, out, verify={"enabled": True})
    return base, adapter, out


@cache
def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
    names = [each.name for each in session(path).get_outputs()]
    return dict(zip(names, session(path).run(None, dict(feeds)), strict=True))


def example(task: str) -> dict[str, Any]:
    """Return the encoder's inputs: three rows, two of them padded."""
    random = np.random.default_rng(0)
    if task == SPEECH:
        return {"input_features": random.standard_normal((3, 8, 40)).astype(np.float32)}
    mask = np.ones((3, 9), np.int64)
    mask[1, 6:] = mask[2, 1:] = 0
    return {"input_ids": random.integers(3, 200, (3, 9)), "attention_mask": mask}


def torch_model(folders: tuple[Path, Path, Path], name: str, task: str) -> Any:
    base, adapter, _ = folders
    if name == "base":
        return load_tiny(base, task)
    # not through PEFT's wrapper: that for SEQ_2_SEQ_LM takes input_ids only, no features
    return peft_model(base, adapter, task).get_base_model()


def close(actual: Any, expected: Any) -> bool:
    return bool(np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected))


@pytest.mark.parametrize("name", ["base", "mine"])
def test_encoder_prefill_and_cached_steps_are_those_of_torch(
    kind: str, folders: tuple[Path, Path, Path], name: str
) -> None:
    task, out = TASKS[kind], folders[2]
    feeds = example(task)
    ids = np.random.default_rng(1).integers(3, 200, (3, 7))
    with torch.inference_mode():
        expected = torch_model(folders, name, task)(
            **{key: torch.tensor(value) for key, value in feeds.items()},
            decoder_input_ids=torch.tensor(ids),
        )
    encoded = run(out / f"encoder.{name}.onnx", feeds)
    valid = feeds.get("attention_mask", np.ones((3, 20))) == 1
    hidden = expected.encoder_last_hidden_state.numpy()
    assert close(encoded["last_hidden_state"][valid], hidden[valid])
    decoder = out / f"decoder.{name}.onnx"
    state = {}
    for each in session(decoder).get_inputs():
        if each.name.startswith(PAST):
            stored = each.name.replace(PAST, "present.")
            empty = np.zeros((3, each.shape[1], 0, each.shape[3]), np.float32)
            state[each.name] = encoded[stored] if ".encoder." in each.name else empty
    masks = {"encoder_attention_mask": feeds["attention_mask"]} if task == TEXT else {}
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 6), (6, 7)):
        outputs = run(decoder, {"input_ids": ids[:, start:end], **masks, **state})
        assert close(outputs.pop("logits"), expected.logits[:, start:end].numpy()), start
        state |= {key.replace("present.", PAST): value for key, value in outputs.items()}


def test_one_copy_of_the_weights_is_read_by_both_graphs(
    kind: str, folders: tuple[Path, Path, Path]
) -> None:
    _, _, out = folders
    assert_intact(out)
    base = load_tiny(folders[0], TASKS[kind])
    held, _ = read_header(out / "weights" / "base.safetensors")
    assert sum(np.prod(each.shape) for each in held.values()) == sum(
        each.numel()
        for each in {id(p): p for p in base.state_dict(keep_vars=True).values()}.values()
    )
    graphs = {
        part: onnx.load(out / f"{part}.mine.onnx", load_external_data=False)
        for part in ("encoder", "decoder")
    }
    changed = {
        part: {
            each.name
            for each in graph.graph.initializer
            if any(entry.value == "weights/mine.safetensors" for entry in each.external_data)
        }
        for part, graph in graphs.items()
    }
    ours, _ = read_header(out / "weights" / "mine.safetensors")
    assert changed["encoder"] | changed["decoder"] == set(ours)
    assert not changed["encoder"] & changed["decoder"]
    # what the cross-attentions make of the encoder's output is computed by the encoder's graph
    assert any(name.startswith(("decoder.", "model.decoder.")) for name in changed["encoder"])
    assert not any(node.op_type == "If" for graph in graphs.values() for node in graph.graph.node)


def test_verification_saw_encoder_logits_and_greedy_tokens(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = report(folders[2], "parity")["graphs"]
    for row in rows.values():
        assert row["verdict"] == "pass"
        assert row["encoder"]["relative_l2"] < 1e-5
        assert row["greedy"]["agreeing_tokens"] == 16
    assert rows["mine"]["effect"] > 1e-2
    assert call(capsys, "verify", folders[2]).code == 0
    assert report(folders[2], "parity")["graphs"]["mine"]["against"] == "golden outputs"


def test_wrong_encoder_output_fails_verification(
    folders: tuple[Path, Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder

    encode = OrtEncoderDecoder.encode

    def wrong(self: OrtEncoderDecoder, feeds: Any) -> Any:
        decoder, hidden = encode(self, feeds)
        return decoder, hidden * 1.01

    monkeypatch.setattr(OrtEncoderDecoder, "encode", wrong)
    result = call(capsys, "verify", folders[2], "--base", folders[0])
    assert result.code == ParityError.exit_code
    assert "encoder" in result.out + result.err


def test_adapter_is_added_as_at_first_and_removed_whole(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, adapter, out = folders
    assert call(capsys, "add", out, "--adapter", f"again={adapter}").code == 0
    assert_intact(out)
    before = manifest_of(out)["graphs"]["mine"]
    values = [(out / "weights" / f"{name}.safetensors") for name in ("mine", "again")]
    offsets = [len(path.read_bytes()) for path in values]
    tensors = [read_header(path)[0] for path in values]
    assert list(tensors[0]) == list(tensors[1])
    assert offsets[0] - offsets[1] in range(-8, 9)
    assert call(capsys, "remove", out, "again").code == 0
    assert not list(out.rglob("*again*"))
    assert manifest_of(out)["graphs"]["mine"] == before
    assert_intact(out)


def test_damaged_encoder_is_found(
    folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, adapter, out = folders
    path = out / "encoder.base.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    try:
        for arguments in (("verify", out), ("add", out, "--adapter", f"again={adapter}")):
            result = call(capsys, *arguments)
            assert result.code == 3
            assert "encoder.base.onnx" in result.err
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["t5", "bart"], indirect=True, scope="module")
@pytest.mark.parametrize("adapter", [None, "mine"])
def test_generated_text_is_that_of_transformers(
    kind: str,
    folders: tuple[Path, Path, Path],
    capsys: pytest.CaptureFixture[str],
    adapter: str | None,
) -> None:
    prompts = ["w5 w17 w101 w44", "w9", "w60 w3 w4"]
    chosen = ("--adapter", adapter) if adapter else ()
    flags = [each for prompt in prompts for each in ("--prompt", prompt)]
    result = call(
        capsys, "generate", folders[2], *chosen, *flags, "--max-new-tokens", "9", "--json"
    )
    assert result.code == 0, result.err
    found = [each["tokens"] for each in json.loads(result.out)["continuations"]]
    model = torch_model(folders, adapter or "base", TEXT)
    for prompt, tokens in zip(prompts, found, strict=True):
        ids = torch.tensor([[int(word[1:]) for word in prompt.split()]])
        with torch.inference_mode():
            whole = model.generate(input_ids=ids, max_new_tokens=9, do_sample=False, num_beams=1)
        assert tokens == whole[0, 1:].tolist()
    assert len({tuple(tokens) for tokens in found}) > 1
    printed = call(capsys, "generate", folders[2], *chosen, "--prompt", prompts[0])
    assert not printed.out.startswith("w5 w17")


@pytest.mark.parametrize("kind", ["whisper"], indirect=True, scope="module")
def test_speech_has_no_prompt(
    kind: str, folders: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, "generate", folders[2], "--prompt", "w5")
    assert result.code == UnsupportedError.exit_code
    assert SPEECH in result.err


def test_what_is_one_graph_only_is_refused(
    tiny: TinyModels, tmp_path: Path, folders: tuple[Path, Path, Path]
) -> None:
    base, adapter, out = folders
    with pytest.raises(UnsupportedError, match="an encoder and a decoder"):
        open_export(out)
    for mode in ("swappable", "batched"):
        with pytest.raises(UnsupportedError, match=f"{mode} does not apply to .* two graphs"):
            build(base, {"mine": adapter}, tmp_path / "out", mode=mode)
    with pytest.raises(UnsupportedError, match="--graph"):
        build(base, {}, tmp_path / "out", graph=str(out / "decoder.base.onnx"))
    for choice in ({"cache": False}, {"logits": "last"}):
        with pytest.raises(UsageError, match="does not apply to the task"):
            build(base, {}, tmp_path / "out", **choice)


def test_forced_first_token_is_written_first(tmp_path: Path, capsys: Any) -> None:
    base = save_tiny_base("t5", tmp_path / "base", TEXT, tokenizer=True)
    transformers.GenerationConfig(
        decoder_start_token_id=0, forced_bos_token_id=77, eos_token_id=1, pad_token_id=0
    ).save_pretrained(base)
    build(base, {}, tmp_path / "out")
    result = call(capsys, "generate", tmp_path / "out", "--prompt", "w5 w6", "--json",
                  "--max-new-tokens", "5")  # fmt: skip
    tokens = json.loads(result.out)["continuations"][0]["tokens"]
    with torch.inference_mode():
        whole = load_tiny(base, TEXT).generate(
            input_ids=torch.tensor([[5, 6]]), max_new_tokens=6, do_sample=False
        )
    assert [0, 77, *tokens] == whole[0].tolist()
