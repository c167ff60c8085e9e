"""Decoding: transformers is the oracle of the tokens and of the distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tokenizers
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lora_export.commands.generate import continue_texts
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.ort_decoder import OrtDecoder
from lora_export.runtime.text_generation import Sampling, choose, generate
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.models import load_tiny, save_tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

TASK = "text-generation"
PROMPTS = [[5, 9, 7, 30, 31], [11], [12, 13, 14]]


class Scripted:
    """A decoder whose next tokens are written down; keeps what it was given."""

    def __init__(self, *tokens: list[int]) -> None:
        self.tokens = iter(tokens)
        self.feeds: list[dict[str, Any]] = []

    def start(self, batch: int) -> None:
        self.batch = batch

    def logits(self, feeds: Any) -> np.ndarray:
        self.feeds.append(dict(feeds))
        return np.eye(50)[next(self.tokens)][:, None]


def greedy(decoder: Any, prompts: Any, count: int, *, stop: Any = ()) -> list[list[int | None]]:
    steps = generate(
        decoder, prompts, max_new_tokens=count, sampling=Sampling(), stop=stop, padding=0
    )
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.fixture(scope="module")
def export(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "out"
    build(tiny.base("gpt2", TASK), {}, folder)
    return folder


def test_greedy_tokens_of_a_padded_batch_are_those_of_transformers_alone(
    tiny: TinyModels, export: Path
) -> None:
    decoder = OrtDecoder(OrtRunner(export / "base.onnx"))
    model = load_tiny(tiny.base("gpt2", TASK), TASK, dtype="float32")
    for _ in range(2):  # the second start forgets the first
        found = greedy(decoder, PROMPTS, 8)
        for prompt, tokens in zip(PROMPTS, found, strict=True):
            ids = torch.tensor([prompt])
            expected = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False,
                eos_token_id=None,
            )  # fmt: skip
            assert tokens == expected[0, len(prompt) :].tolist()


def test_graph_without_a_cache_is_refused_before_anything_is_printed(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_dir = build(tiny.base("gpt2", TASK), {}, tmp_path / "out", cache=False).output
    with pytest.raises(UnsupportedError, match="no cache"):
        OrtDecoder(OrtRunner(export_dir / "base.onnx"))
    save_tiny_tokenizer(export_dir / "hf")
    refused = call(capsys, "generate", export_dir, "--prompt", "w5 w9")
    assert (refused.code, refused.out) == (4, "")
    assert "no cache" in refused.err


def test_text_goes_on_where_the_prompt_ends(export: Path) -> None:
    """SentencePiece's decoder drops the space before the first word of whatever it decodes."""
    words = {f"▁w{index}": index for index in range(200)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="▁w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.save(str(export / "hf" / "tokenizer.json"))
    pieces: list[str] = []
    prompts = ["w5 w9", "w7"]
    found = continue_texts(
        export, prompts, adapter=None, max_new_tokens=4, sampling=Sampling(),
        on_text=pieces.append,
    )  # fmt: skip
    for prompt, each in zip(prompts, found, strict=True):
        whole = " ".join([prompt, *(f"w{token}" for token in each.tokens)])
        assert prompt + each.text == whole
    assert "".join(pieces) == found[0].text


def test_prompts_are_padded_on_the_left_and_positions_go_on() -> None:
    decoder = Scripted([3, 4], [5, 6])
    assert greedy(decoder, [[7, 8, 9], [2]], 2) == [[3, 5], [4, 6]]
    first, second = decoder.feeds
    assert first["input_ids"].tolist() == [[7, 8, 9], [0, 0, 2]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert first["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]
    assert second["input_ids"].tolist() == [[3], [4]]
    assert second["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert second["position_ids"].tolist() == [[3], [1]]


def test_row_ends_at_its_stop_token_and_the_batch_with_the_last_row() -> None:
    decoder = Scripted([9, 1], [4, 2], [4, 9], [4, 4])
    assert greedy(decoder, [[7], [8]], 4, stop={9}) == [[9, None, None], [1, 2, 9]]
    assert decoder.feeds[2]["input_ids"].tolist() == [[0], [2]]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (7, 0.8), (1, 0.01)])
def test_draws_follow_the_distribution_of_transformers(top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(0).standard_normal((1, 20)) * 2
    scores = TemperatureLogitsWarper(0.7)(None, torch.tensor(logits))
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = scores.softmax(dim=-1)[0].numpy()
    count = 40_000
    rows = np.repeat(logits, count, axis=0)
    drawn = choose(rows, Sampling(0.7, top_k, top_p), np.random.default_rng(1))
    found = np.bincount(drawn, minlength=20) / count
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    np.testing.assert_allclose(found, expected, atol=5 / np.sqrt(count))


def test_a_temperature_near_zero_takes_the_largest() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 20)) * 30
    drawn = choose(logits, Sampling(1e-310, top_p=0.9), np.random.default_rng(1))
    assert drawn.tolist() == logits.argmax(axis=-1).tolist()


def test_the_seed_decides_the_draw() -> None:
    def text(seed: int) -> Any:
        decoder = Scripted(*([[3, 4]] * 9))
        decoder.step = lambda _: np.zeros((2, 50))  # type: ignore[method-assign]
        sampling = Sampling(1.0, seed=seed)
        return list(
            generate(decoder, [[1], [2]], max_new_tokens=9, sampling=sampling, stop=(), padding=0)
        )

    assert text(3) == text(3) != text(4)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_settings_that_mean_nothing_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="is not"):
        Sampling(**wrong)


def test_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="no tokens"):
        greedy(Scripted(), [[1], []], 1)
