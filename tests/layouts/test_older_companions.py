"""Files that transformers 5 writes, as version 4 reads them."""

from __future__ import annotations

import json
import os

import pytest

from lora_export.core.errors import ExportDirectoryError
from lora_export.layouts.companion_tables import tokenizer_files
from lora_export.layouts.hub_files import hub_files
from lora_export.layouts.tokenizer_config import older_tokenizer_config


def older(table, *, has_json=True, template=None):
    found = older_tokenizer_config(table, has_json=has_json, template=template)
    assert found.pop("clean_up_tokenization_spaces") is False
    return found


def test_a_class_that_version_4_lacks_is_any_fast_tokenizer():
    for name in ("TokenizersBackend", "SomeTokenizerOf2027"):
        assert older({"tokenizer_class": name}) == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "attention_mask"],
        }
        assert older({"tokenizer_class": name}, has_json=False) == {}
    for name in ("BertTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast"):
        assert older({"tokenizer_class": name}) == {"tokenizer_class": name}


def test_further_special_tokens_have_their_old_names():
    table = {"extra_special_tokens": ["<a>"], "model_specific_special_tokens": {"image": "<i>"}}
    assert older(table) == {
        "additional_special_tokens": ["<a>"],
        "extra_special_tokens": {"image": "<i>"},
    }
    assert older({"extra_special_tokens": {"image": "<i>"}}) == {
        "extra_special_tokens": {"image": "<i>"}
    }


def test_a_template_of_its_own_is_in_the_table_too():
    assert older({}, template="{{ x }}") == {"chat_template": "{{ x }}"}
    assert older({"chat_template": "own"}, template="{{ x }}") == {"chat_template": "own"}


def test_a_tokenizer_alone_gets_its_table_where_it_is_needed(tmp_path):
    path = tmp_path / "tokenizer.json"
    rows = [{"id": 0, "content": "<e>"}, {"id": 5, "content": "<p>"}, {"id": "x"}, 7]
    path.write_text(json.dumps({"added_tokens": rows}))
    config = {"eos_token_id": [0, 4], "pad_token_id": 5, "bos_token_id": 9}
    placed = hub_files({path.name: path}, config, complete=True)
    assert json.loads(placed["tokenizer_config.json"]) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "eos_token": "<e>",
        "pad_token": "<p>",
    }
    assert "tokenizer_config.json" not in hub_files({path.name: path}, config)


def test_what_a_table_says_is_kept():
    table = {
        "tokenizer_class": "TokenizersBackend",
        "model_input_names": ["input_ids"],
        "clean_up_tokenization_spaces": True,
    }
    found = older_tokenizer_config(table, has_json=True, template=None)
    assert found == {**table, "tokenizer_class": "PreTrainedTokenizerFast"}


def test_the_settings_of_an_extractor_have_a_file_of_their_own(tmp_path):
    inner = {"feature_extractor_type": "WhisperFeatureExtractor", "hop_length": 160}
    table = {"processor_class": "WhisperProcessor", "feature_extractor": inner}
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(table))
    placed = hub_files({path.name: path}, {"model_type": "whisper"})
    assert json.loads(placed["preprocessor_config.json"]) == {
        "processor_class": "WhisperProcessor",
        **inner,
    }
    assert json.loads(placed["processor_config.json"]) == {"processor_class": "WhisperProcessor"}
    assert json.loads(placed["config.json"]) == {"model_type": "whisper"}


def test_a_template_that_is_too_large_is_refused_unread(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").touch()
    os.truncate(tmp_path / "chat_template.jinja", 100 << 20)
    with pytest.raises(ExportDirectoryError, match=r"chat template .* larger than"):
        tokenizer_files({each.name: each for each in tmp_path.iterdir()})
