"""The files beside an adapter's tensors, judged against what transformers loads of it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.adapters.canonical import Adapter
from lora_export.core.errors import AdapterError, InputError
from lora_export.weights.companion_files import LIMIT_BYTES, companion_files, same_content
from lora_export.weights.label_names import named_classes, names_of_head
from lora_export.weights.own_companions import own_companions
from lora_export.weights.special_tokens import special_ids, with_special_tokens
from tests.helpers.own_tokenizer import save_base_tokenizer, save_own_tokenizer, table

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
PIECES = ["<pad>", "<unk>", "<s>", "</s>", "a", "b", "▁a"]


def adapter(place: Path, name: str = "x") -> Adapter:
    return Adapter(
        name=name, source=name, folder=place, format="peft", low_rank=(), saved=(), task_type=None,
        base_name=None, sha256="0" * 64, config={},
    )  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    table(folder / "config.json", model_type="llama", vocab_size=200, eos_token_id=2)
    return save_base_tokenizer(folder)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def brought(base: Path, place: Path, **more: Any) -> Any:
    return own_companions([adapter(place)], companion_files(base), **more)


def _models() -> dict[str, Any]:
    import tokenizers

    numbered = {piece: index for index, piece in enumerate(PIECES)}
    kinds = tokenizers.models
    return {
        "word level": kinds.WordLevel(numbered, unk_token="<unk>"),
        "word piece": kinds.WordPiece(numbered, unk_token="<unk>"),
        "bpe": kinds.BPE(numbered, [("▁", "a")] if "▁" in numbered else [], unk_token="<unk>"),
        "unigram": kinds.Unigram([(piece, -1.0) for piece in PIECES], unk_id=1),
    }


@pytest.mark.parametrize("kind", ["word level", "word piece", "bpe", "unigram"])
def test_special_ids_are_those_that_transformers_has(kind, tmp_path) -> None:
    import tokenizers
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(_models()[kind]), **SPECIAL
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.eos_token = "<end>"
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = {
        f"{each}_token_id": getattr(loaded, f"{each}_token_id") for each in ("eos", "bos", "pad")
    }
    assert special_ids(companion_files(tmp_path)) == wanted
    assert wanted == {"eos_token_id": 7, "bos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    "files",
    [
        {"vocab.txt": "\n".join(PIECES)},
        {"vocab.json": json.dumps(dict(zip(PIECES, range(7), strict=True))), "merges.txt": ""},
        {"tokenizer.model": "binary", "tokenizer_config.json": json.dumps({
            "eos_token": {"content": "</s>"},
            "added_tokens_decoder": {"3": {"content": "</s>"}, "x": {"content": "<s>"}}})},
        {"tokenizer.model": "binary", "added_tokens.json": json.dumps({"</s>": 3})},
    ],
)  # fmt: skip
def test_special_ids_of_tokenizers_of_older_versions(files, tmp_path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert special_ids(companion_files(tmp_path)) == {"eos_token_id": 3}


def test_a_config_of_several_parts_has_them_where_its_text_model_is() -> None:
    ids = {"eos_token_id": 7, "pad_token_id": 9, "bos_token_id": 300}
    text = {"vocab_size": 200, "eos_token_id": [2, 3], "pad_token_id": 0}
    config = {"model_type": "gemma3", "text_config": text, "eos_token_id": 2}
    assert with_special_tokens(config, ids) == {
        "model_type": "gemma3", "eos_token_id": 7,
        "text_config": {"vocab_size": 200, "eos_token_id": [7, 2, 3], "pad_token_id": 9},
    }  # fmt: skip
    assert config["text_config"] == text
    assert with_special_tokens({"eos_token_id": [2, 7]}, ids) == {
        "eos_token_id": [2, 7], "pad_token_id": 9, "bos_token_id": 300,
    }  # fmt: skip


def test_a_model_that_numbers_positions_from_its_padding_keeps_it() -> None:
    for model_type, padding in (("llama", 7), ("bert", 7), ("roberta", 1), ("xlm-roberta", 1)):
        config = {"model_type": model_type, "pad_token_id": 1, "eos_token_id": 2}
        found = with_special_tokens(config, {"pad_token_id": 7, "eos_token_id": 8})
        assert found == {"model_type": model_type, "pad_token_id": padding, "eos_token_id": 8}


def test_a_file_alone_brings_the_folder_that_its_config_is_in(base, own) -> None:
    save_own_tokenizer(base, own)
    (own / "adapter_model.safetensors").touch()
    assert brought(base, own / "adapter_model.safetensors").files == {}
    (own / "adapter_config.json").write_text("{}")
    assert brought(base, own / "adapter_model.safetensors").taken == brought(base, own).taken
    assert brought(base, own).tokens == {"eos_token_id": 191}


def test_the_base_s_own_folder_brings_nothing(base) -> None:
    (base / "adapter_config.json").write_text("{}")
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    found = brought(base, base)
    assert (found.files, found.hidden, found.taken, found.tokens) == ({}, frozenset(), (), {})


@pytest.mark.parametrize("value", [-1, [], None])
def test_numbers_of_no_token_are_not_taken(base, own, value) -> None:
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert brought(base, own).tokens == {}
    assert brought(base, own).taken == ("generation_config.json",)


@pytest.mark.parametrize("value", ["two", [1, "x"], True, 1.5, {}, [True]])
def test_what_is_no_number_of_a_token_is_named(base, own, value) -> None:
    (own / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(AdapterError, match=r"has the eos_token_id .* must be the number"):
        brought(base, own)


def test_a_grown_vocabulary_has_rows_for_its_tokens(base, own) -> None:
    table(base / "config.json", vocab_size=190)
    save_own_tokenizer(base, own)
    assert brought(base, own).tokens == {}
    assert "outside the model's vocabulary of 190 tokens" in brought(base, own).notes[0]
    assert brought(base, own, rows=192).tokens == {"eos_token_id": 191}


def test_a_damaged_file_is_named(base, own) -> None:
    (own / "tokenizer.json").write_text("{")
    with pytest.raises(AdapterError, match=r"tokenizer\.json"):
        brought(base, own)


def test_a_file_that_is_too_large_is_named(base, own) -> None:
    (own / "tokenizer.json").touch()
    os.truncate(own / "tokenizer.json", LIMIT_BYTES + 1)
    with pytest.raises(InputError, match=r"own/tokenizer\.json' has 268435457 bytes"):
        brought(base, own)


def test_code_and_weights_and_what_is_no_file_stay(own) -> None:
    for name in ("tokenization_x.py", "model.safetensors", "README.md", "tokenizer.py"):
        (own / name).touch()
    (own / "tokenizer.json").mkdir()
    (own / "vocab.json").symlink_to("vocab.json")
    assert companion_files(own) == {}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2], "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": [1, 2]}, {"a": [2, 1]}, False),
        ({"a": 1, "transformers_version": "4"}, {"a": 1, "name_or_path": "x"}, True),
    ],
)
def test_json_is_compared_by_what_it_says(first, second, same) -> None:
    data = [json.dumps(each, indent=at).encode() for at, each in enumerate((first, second))]
    assert same_content("x.json", *data) is same
    assert not same_content("x.txt", *data)


def test_names_of_classes_have_an_order(base) -> None:
    of_base = {"id2label": {"0": "a", "1": "b"}}
    own = {"id2label": {"1": "d", "0": "c"}}
    told = {"base": of_base, "own": own}
    assert names_of_head(2, given=["x", "y"], brought=True, **told) == ("x", "y")
    assert names_of_head(2, given=None, brought=False, **told) == ("c", "d")
    assert names_of_head(2, given=None, own={}, base=of_base, brought=False) == ("a", "b")
    assert names_of_head(2, given=None, own={}, base=of_base, brought=True) == (
        "LABEL_0",
        "LABEL_1",
    )
    assert names_of_head(3, given=None, brought=False, **told)[2] == "LABEL_2"
    for wrong in ({}, [], {"0": 1}, {"0": "a", "2": "b"}, {"0": "a", "1": "a"}):
        assert named_classes({"id2label": wrong}) is None


def test_a_file_that_is_too_large_for_a_tokenizer_is_not_copied(base: Path) -> None:
    os.truncate(base / "tokenizer.json", LIMIT_BYTES + 1)
    with pytest.raises(InputError, match=r"tokenizer\.json' has 268435457 bytes"):
        companion_files(base)
