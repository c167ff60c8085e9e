"""Greedy tokens, and logits in pieces, against a reference that is written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_export.graph.spec.signature import WRITE_INDICES, CachedLayer, Input, Signature
from lora_export.ondevice.judge.decoding import run_in_pieces
from lora_export.verification.greedy import compare_greedy, greedy_of_reference, prompts_for
from lora_export.verification.inputs.feeding import Feeding
from lora_export.verification.inputs.random_inputs import make_cases
from tests.helpers.interfaces import reading

VOCABULARY = 30


def whole(feeds: Any) -> np.ndarray:
    """Return logits ``[batch, sequence, vocabulary]``: a function of the sum of what was read."""
    seen = (feeds["input_ids"] * feeds["attention_mask"]).cumsum(axis=1)
    return np.sin(seen[..., None] * np.arange(1, VOCABULARY + 1) * 0.37)


class Summing:
    """The same model with a cache: the sum of what it has read."""

    def __init__(self, forget: bool = False) -> None:
        self.forget = forget
        self.lengths: list[int] = []

    def start(self, batch: int) -> None:
        self.past = np.zeros((batch, 1, 0, 1))

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        past, ids = feeds["past_key_values.0.key"], feeds["input_ids"]
        self.lengths.append(ids.shape[1])
        assert feeds["attention_mask"].shape[1] == past.shape[2] + ids.shape[1]
        new = (ids * feeds["attention_mask"][:, past.shape[2] :])[:, None, :, None]
        kept = np.concatenate([past, new], axis=2)
        sums = kept.cumsum(axis=2)[:, 0, past.shape[2] :]
        if self.forget and past.shape[2]:
            sums = sums + 1
        logits = np.sin(sums * np.arange(1, VOCABULARY + 1) * 0.37)
        return {"logits": logits, "present.0.key": kept, "present.0.value": kept}

    def logits(self, feeds: Any) -> np.ndarray:
        outputs = self.run({**feeds, "past_key_values.0.key": self.past})
        self.past = outputs["present.0.key"]
        return outputs["logits"]


@pytest.fixture
def cases() -> Any:
    text = reading("input_ids", "attention_mask", "position_ids").inputs
    signature = Signature((*text, *CachedLayer(0, 1, 1, 1).inputs(0, "float32")), ())
    return make_cases({"vocab_size": VOCABULARY}, signature, seed=0, left_padding=True)


def test_pieces_put_together_are_the_whole(cases: Any) -> None:
    for case in cases:
        graph = Summing()
        actual = run_in_pieces(graph, case.feeds, "logits")
        np.testing.assert_allclose(actual, whole(case.feeds), atol=1e-12)
        length = case.mask.shape[1]
        assert graph.lengths == ([length - 2, 1, 1] if length > 2 else [1])


def test_wrong_cache_shows_in_the_pieces(cases: Any) -> None:
    actual = run_in_pieces(Summing(forget=True), cases[1].feeds, "logits")
    difference = np.abs(actual - whole(cases[1].feeds)).max(axis=(0, 2))
    assert (difference[:-2] < 1e-12).all()
    assert (difference[-2:] > 0.1).all()


def test_last_logits_are_those_of_the_last_piece(cases: Any) -> None:
    class Last(Summing):
        def run(self, feeds: Any) -> dict[str, np.ndarray]:
            outputs = super().run(feeds)
            return {**outputs, "logits": outputs["logits"][:, -1:]}

    for case in cases:
        actual = run_in_pieces(Last(), case.feeds, "logits", last=True)
        np.testing.assert_allclose(actual, whole(case.feeds)[:, -1:], atol=1e-12)


def test_right_decoder_agrees_on_every_token(cases: Any) -> None:
    expected = greedy_of_reference(whole, cases[1], steps=6)
    found = compare_greedy(Summing(), expected, tolerance=1e-5)
    assert (found.rows, found.steps, found.agreeing_tokens) == (2, 6, 12)
    assert found.disagreements == found.clear_disagreements == 0


def test_wrong_decoder_is_named_with_row_and_step(cases: Any) -> None:
    expected = greedy_of_reference(whole, cases[1], steps=6)
    found = compare_greedy(Summing(forget=True), expected, tolerance=1e-5)
    assert found.clear_disagreements >= 1
    first = found.differing[0]
    assert first.graph != first.reference == expected.tokens[first.row, first.step]
    assert first.step >= 1  # the prefill is right


def decoder(room: int | None) -> Feeding:
    """Return the interface of a decoder; with a static cache of `room` positions."""
    inputs = reading("input_ids", "position_ids").inputs
    inputs += (Input("attention_mask", "int64", ("batch", room or "total_sequence")),)
    if room is not None:
        inputs += (Input(WRITE_INDICES, "int64", ("batch",)),)
    return Feeding(Signature((*inputs, *CachedLayer(0, 1, 1, 1, room).inputs(0, "float32")), ()))


@pytest.mark.parametrize(
    ("positions", "room", "length", "steps"),
    [
        (512, None, 24, 8),
        (512, 31, 24, 8),
        (512, 24, 17, 8),  # as long as the text that there is room for otherwise
        (512, 5, 3, 3),
        (512, 2, 2, 1),
        (512, 1, 1, 1),
        (7, None, 4, 4),
        (7, 64, 4, 4),
    ],
)
def test_text_and_tokens_fit_what_model_and_cache_hold(
    positions: int, room: int | None, length: int, steps: int
) -> None:
    config = {"vocab_size": VOCABULARY, "n_positions": positions, "pad_token_id": 0}
    case, found = prompts_for(decoder(room), config, seed=0, left_padding=True)
    assert (case.mask.shape, found) == ((2, length), steps)
    assert length + steps - 1 <= min(positions, room or positions)  # the last token is not run
    if length > 2:
        assert not case.mask[1, 0]
        assert case.mask[1, -1]
