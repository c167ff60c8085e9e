"""Seeded inputs: within the model's limits, padded where rows differ."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.graph.spec.signature import Input, Signature
from lora_export.ondevice.judge.golden_files import valid_rows
from lora_export.verification.inputs.random_inputs import CASES, make_cases, text_feeds
from tests.helpers.interfaces import reading

BERT = {
    "vocab_size": 50,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
NAMES = ["input_ids", "attention_mask", "token_type_ids"]


def make(config, names=NAMES, **settings):
    return make_cases(config, reading(*names), **{"seed": 0, "left_padding": False, **settings})


def test_shapes_names_and_dtype():
    cases = make(BERT)
    assert [case.mask.shape for case in cases] == list(CASES)
    for case in cases:
        assert list(case.feeds) == NAMES
        assert all(value.dtype == np.int64 for value in case.feeds.values())
        assert all(value.shape == case.mask.shape for value in case.feeds.values())


def test_there_are_several_batch_sizes_lengths_and_padded_rows():
    cases = make(BERT)
    assert len({case.mask.shape[0] for case in cases}) >= 3
    assert len({case.mask.shape[1] for case in cases}) >= 4
    assert sum(not case.mask.all() for case in cases) >= 3


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_on_one_side_and_no_row_is_empty(left):
    for case in make(BERT, left_padding=left):
        ids, mask = case.feeds["input_ids"], case.mask
        assert mask.any(axis=1).all()
        assert mask[0].all()
        assert (ids[~mask] == 0).all()
        assert (ids[mask] != 0).all()
        assert (ids < 50).all()
        np.testing.assert_array_equal(case.feeds["attention_mask"], mask)
        steps = np.diff(mask.astype(int), axis=1)
        assert ((steps >= 0) if left else (steps <= 0)).all()
        assert (case.feeds["token_type_ids"][~mask] == 0).all()
        assert set(np.unique(case.feeds["token_type_ids"])) <= {0, 1}


def test_positions_of_a_left_padded_row_begin_at_its_first_token():
    cases = make(BERT, ["input_ids", "attention_mask", "position_ids"], left_padding=True)
    for case in cases:
        for row, mask in zip(case.feeds["position_ids"], case.mask, strict=True):
            np.testing.assert_array_equal(row[mask], np.arange(mask.sum()))
            assert (row[~mask] == 0).all()


def test_the_seed_decides():
    one, same, other = make(BERT), make(BERT), make(BERT, seed=1)
    assert all((a.feeds["input_ids"] == b.feeds["input_ids"]).all() for a, b in zip(one, same,
               strict=True))  # fmt: skip
    assert any((a.feeds["input_ids"] != b.feeds["input_ids"]).any() for a, b in zip(one, other,
               strict=True))  # fmt: skip


def test_lengths_are_cut_to_what_the_model_takes():
    # RoBERTa's positions begin after its padding index: 34 embeddings hold 32 tokens.
    config = {"model_type": "roberta", "vocab_size": 50, "max_position_embeddings": 34}
    cases = make({**config, "pad_token_id": 1})
    assert max(case.mask.shape[1] for case in cases) == 32


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 50257, "n_positions": 1024, "pad_token_id": 50256},  # GPT-2, pad = eos
        {"vocab_size": 128256, "max_position_embeddings": 8192, "pad_token_id": 128004},
        {"vocab_size": 32000, "max_position_embeddings": 2048, "pad_token_id": -1},
        {"vocab_size": 32000, "max_position_embeddings": 2048, "pad_token_id": None},
        {"vocab_size": 200},
    ],
)
def test_a_padding_token_far_up_the_vocabulary_does_not_shorten_the_inputs(config):
    cases = make(config, ["input_ids", "attention_mask"])
    assert [case.mask.shape for case in cases] == list(CASES)


def test_rows_that_count_leave_padding_out():
    (case,) = make(BERT, shapes=((3, 8),))
    output = np.arange(3 * 8 * 2).reshape(3, 8, 2)
    rows = valid_rows(output, case, per_token=True)
    assert rows.shape == (case.mask.sum(), 2)
    np.testing.assert_array_equal(rows, np.concatenate([o[m] for o, m in zip(output, case.mask,
                                                        strict=True)]))  # fmt: skip
    assert valid_rows(np.ones((3, 5)), case, per_token=False).shape == (3, 5)


def test_pictures_have_the_dtype_and_the_axes_that_the_graph_states():
    pixels = Input("pixel_values", "float16", ("batch", 3, 8, 6))
    cases = make_cases({}, Signature((pixels,), ()), seed=0, left_padding=False)
    for case, (batch, _) in zip(cases, CASES, strict=True):
        assert case.feeds["pixel_values"].shape == (batch, 3, 8, 6)
        assert case.feeds["pixel_values"].dtype == np.float16
        assert case.mask.shape == (batch, 1)
    assert np.abs(cases[0].feeds["pixel_values"]).max() > 1


@pytest.mark.parametrize(
    "strange", [Input("x", "float32", ("batch", "time")), Input("x", "int64", ("batch",))], ids=str
)
def test_an_input_that_is_not_known_is_refused_by_name(strange):
    with pytest.raises(UnsupportedError, match="'x'"):
        make_cases({}, Signature((strange,), ()), seed=0, left_padding=False)


def test_texts_on_a_static_cache_have_its_mask_and_its_buffers():
    text, cache = ("batch", "sequence"), ("batch", 2, 16, 4)
    signature = Signature(
        (
            Input("input_ids", "int64", text),
            Input("attention_mask", "int64", ("batch", 16)),
            Input("position_ids", "int64", text),
            Input("write_indices", "int64", ("batch",)),
            Input("past_key_values.0.key", "float32", cache),
        ),
        (),
    )
    ids = np.array([[0, 0, 7], [5, 6, 7]])
    feeds = text_feeds(signature, ids, np.array([[0, 0, 1], [1, 1, 1]]), np.zeros_like(ids))
    assert feeds["attention_mask"].shape == (2, 16)
    np.testing.assert_array_equal(feeds["attention_mask"][:, :3], [[0, 0, 1], [1, 1, 1]])
    assert not feeds["attention_mask"][:, 3:].any()
    np.testing.assert_array_equal(feeds["position_ids"], [[0, 0, 0], [0, 1, 2]])
    np.testing.assert_array_equal(feeds["write_indices"], [0, 0])
    assert feeds["past_key_values.0.key"].shape == (2, 2, 16, 4)


def test_the_tokens_of_a_decoder_are_of_its_own_vocabulary():
    names = ["input_ids", "decoder_input_ids"]
    for own, highest in ((10, 9), (None, 49)):  # Marian may have two vocabularies
        cases = make({**BERT, "decoder_vocab_size": own}, names)
        assert max(case.feeds["decoder_input_ids"].max() for case in cases) == highest
        assert max(case.feeds["input_ids"].max() for case in cases) == 49


def test_no_token_of_a_decoder_is_padding():
    names = ["input_ids", "decoder_input_ids"]
    for own, padding in ((None, 3), (10, 9)):
        config = {**BERT, "vocab_size": 12, "pad_token_id": padding, "decoder_vocab_size": own}
        found = np.concatenate([c.feeds["decoder_input_ids"].ravel() for c in make(config, names)])
        assert set(found.tolist()) == set(range(own or 12)) - {padding}
