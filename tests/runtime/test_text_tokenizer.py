"""Tokenizers that fail, hang or lie end in one error, and say nothing of their own on stderr."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from lora_export.core.errors import InputError
from lora_export.runtime import text_tokenizer
from lora_export.runtime.text_tokenizer import TextTokenizer
from lora_export.runtime.tokens import require_rows
from tests.helpers.odd_values import mutated, with_each

if TYPE_CHECKING:
    from pathlib import Path

TOKENIZER: Final[dict[str, Any]] = {
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 3,
        "pad_type_id": 0, "pad_token": "[PAD]",
    },
    "added_tokens": [
        {"id": 1, "content": "[UNK]", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True},
    ],
    "normalizer": {"type": "Replace", "pattern": {"Regex": "c"}, "content": "a"},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "b"}, "behavior": "Isolated",
                      "invert": False},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1, "b": 2}, "unk_token": "[UNK]"},
}  # fmt: skip


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**TOKENIZER, **changes}))
    return path


def _split(pattern: str) -> dict[str, Any]:
    return {"pre_tokenizer": {**TOKENIZER["pre_tokenizer"], "pattern": {"Regex": pattern}}}


def test_texts_become_tokens_and_tokens_texts(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(_write(tmp_path))
    assert [each.ids for each in tokenizer.encode(["cba", "a"])] == [[0, 2, 0], [0]]
    assert tokenizer.decode([0, 2]) == "a b"
    assert (tokenizer.pad_id, tokenizer.longest) == (3, 8)
    tokenizer.cut_to(2)
    assert [each.ids for each in tokenizer.encode(["aba"] * 300)] == [[0, 2]] * 300
    tokenizer.cut_to(None)
    assert tokenizer.longest is None


def test_nothing_is_filled_up_to_a_length(tmp_path: Path) -> None:
    padding = {**TOKENIZER["padding"], "strategy": {"Fixed": 10**12}}
    (only,) = TextTokenizer(_write(tmp_path, padding=padding)).encode(["a"])
    assert only.ids == [0]


RUN: Final[dict[str, dict[str, Any]]] = {
    "a pattern that backtracks": _split("(a+)+$"),
    "a replacement that backtracks": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
    },
    "an unknown word that is not there": {
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "zz"}
    },
}


@pytest.mark.parametrize("case", RUN)
def test_what_fails_on_a_text_is_one_error(case: str, tmp_path: Path, capfd) -> None:
    tokenizer = TextTokenizer(_write(tmp_path, **RUN[case]))
    with pytest.raises(InputError, match="cannot run the tokenizer") as refused:
        tokenizer.encode(["a" * 40 + "b"])
    assert "\n" not in refused.value.message
    assert capfd.readouterr().err == ""


READ: Final[dict[str, dict[str, Any]]] = {
    "no pattern": _split("("),
    "merges that are not words": {
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}
    },
    "a model without its words": {"model": {"type": "WordLevel"}},
    "another model": {"model": {"type": "Word"}},
    "a list as the model": {"model": []},
    "a negative padding token": {"padding": {**TOKENIZER["padding"], "pad_id": -1}},
}


@pytest.mark.parametrize("case", READ)
def test_what_cannot_be_read_is_one_error(case: str, tmp_path: Path, capfd) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json") as refused:
        TextTokenizer(_write(tmp_path, **READ[case]))
    assert "\n" not in refused.value.message
    assert capfd.readouterr().err == ""


def test_a_replacement_without_end_is_given_up(tmp_path: Path, monkeypatch) -> None:
    grown = {"type": "Replace", "pattern": {"Regex": "a"}, "content": "x" * 1_000_000}
    tokenizer = TextTokenizer(_write(tmp_path, normalizer=grown))
    monkeypatch.setattr(text_tokenizer, "_LIMIT_S", 0.01)
    start = time.perf_counter()
    with pytest.raises(InputError, match="takes longer than"):
        tokenizer.encode(["a" * 10])
    assert time.perf_counter() - start < 5


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    require_rows([[0, 9], []], {"vocab_size": 10})
    require_rows([[10]], {})
    with pytest.raises(InputError, match="makes the token 10, and the model has rows for 10"):
        require_rows([[10]], {"vocab_size": 50, "text_config": {"vocab_size": 10}})


def _reads_or_refuses(path: Path) -> None:
    try:
        TextTokenizer(path).encode(["a b c", ""])
    except InputError as error:
        if "\n" in error.message:
            raise


def test_every_setting_with_every_odd_value_is_read_or_refused(tmp_path: Path) -> None:
    for _, table in with_each(TOKENIZER):
        _reads_or_refuses(_write(tmp_path, **table))


def test_mutated_tokenizers_are_read_or_refused(tmp_path: Path) -> None:
    numbers = random.Random(19)
    for _ in range(100):
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(mutated(TOKENIZER, numbers)))
        _reads_or_refuses(path)
