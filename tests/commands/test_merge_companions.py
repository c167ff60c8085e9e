"""``merge``: tokenizer, chat template, generation settings and labels that come with an adapter.

The oracle is transformers, which loads the merged folder beside the adapter's own.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from lora_export.core.merge_record import read_record
from tests.cli.running import call, snapshot
from tests.helpers.handmade import save_adapter, save_checkpoint, shapes_of_lora
from tests.helpers.own_tokenizer import (
    CHAT,
    TEXT,
    loaded,
    save_base_tokenizer,
    save_own_tokenizer,
    table,
)

if TYPE_CHECKING:
    from pathlib import Path

HEAD = {"base_model.model.classifier.weight": (3, 8), "base_model.model.classifier.bias": (3,)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = save_checkpoint(
        tmp_path / "base", eos_token_id=2, bos_token_id=1, pad_token_id=0, vocab_size=200
    )
    table(folder / "generation_config.json", eos_token_id=2, temperature=0.5)
    return save_base_tokenizer(folder)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter")


def merged(capsys, base: Path, *adapters: Path, flags: tuple[object, ...] = ()) -> Path:
    out = base.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    given = [each for path in adapters for each in ("--adapter", f"{path.name}={path}")]
    result = call(capsys, "merge", "--base", base, *given, "--out", out, *flags)
    assert result.code == 0, result.err
    return out


def test_an_adapter_s_tokenizer_is_taken_whole(base, adapter, capsys) -> None:
    (base / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    own = save_own_tokenizer(base, adapter)
    out = merged(capsys, base, adapter)
    found = loaded(out)
    assert found(TEXT).input_ids == own(TEXT).input_ids == [190, 5, 6, 191]
    assert (found.eos_token, found.chat_template) == ("<|im_end|>", CHAT)
    assert not (out / "special_tokens_map.json").exists()
    assert table(out / "config.json")["eos_token_id"] == 191
    settings = table(out / "generation_config.json")
    assert (settings["eos_token_id"], settings["temperature"]) == ([191, 2], 0.5)
    assert "tokenizer" in read_record(out).companions
    first = snapshot(out)
    assert snapshot(merged(capsys, base, adapter)) == first


def test_the_configs_agree_with_the_tokenizer_as_transformers_aligns_them(
    base, adapter, capsys
) -> None:
    import transformers
    from transformers.trainer_utils import align_special_tokens

    own = save_own_tokenizer(base, adapter)
    out = merged(capsys, base, adapter)
    config = transformers.AutoConfig.from_pretrained(base)

    class Model:
        generation_config = transformers.GenerationConfig.from_pretrained(base)

    Model.config = config
    align_special_tokens(Model, own)
    found = transformers.GenerationConfig.from_pretrained(out)
    assert found.eos_token_id == Model.generation_config.eos_token_id
    assert transformers.AutoConfig.from_pretrained(out).eos_token_id == config.eos_token_id


def test_files_that_say_the_same_are_the_base_s(base, adapter, capsys) -> None:
    shutil.copy(base / "tokenizer.json", adapter)
    held = table(base / "tokenizer_config.json")
    text = dict(reversed({**held, "name_or_path": "/elsewhere"}.items()))
    table(adapter / "tokenizer_config.json", **text)
    table(adapter / "generation_config.json", temperature=0.5, eos_token_id=2,
          transformers_version="4.1.0")  # fmt: skip
    out = merged(capsys, base, adapter)
    assert read_record(out).companions == []
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_files_without_a_vocabulary_are_not_mixed_with_the_base_s(base, adapter, capsys) -> None:
    table(adapter / "tokenizer_config.json", eos_token="w7", chat_template=CHAT)
    out = base.parent / "out"
    result = call(capsys, "merge", "--base", base, "--adapter", f"x={adapter}", "--out", out)
    assert result.code == 0
    assert "tokenizer_config.json but no vocabulary file" in result.err
    found = loaded(out)
    assert (found.eos_token, found.chat_template) == ("</s>", CHAT)
    assert read_record(out).companions == ["chat template"]


def test_a_chat_template_and_generation_settings_are_taken_alone(base, adapter, capsys) -> None:
    (adapter / "chat_template.jinja").write_text(CHAT)
    (adapter / "additional_chat_templates").mkdir()
    (adapter / "additional_chat_templates" / "tools.jinja").write_text("tools")
    table(adapter / "generation_config.json", eos_token_id=[7, 2])
    (adapter / "tokenization_own.py").write_text("raise SystemExit")
    out = merged(capsys, base, adapter)
    assert loaded(out).chat_template == {"default": CHAT, "tools": "tools"}
    assert table(out / "generation_config.json") == {"eos_token_id": [7, 2]}
    assert table(out / "config.json")["eos_token_id"] == [7, 2]
    assert not list(out.glob("*.py"))


def test_a_token_beyond_the_vocabulary_is_not_put_into_the_config(base, adapter, capsys) -> None:
    table(base / "config.json", vocab_size=191)
    save_own_tokenizer(base, adapter)  # <|im_end|> is 191
    out = merged(capsys, base, adapter)
    assert table(out / "config.json")["eos_token_id"] == 2
    assert table(out / "generation_config.json")["eos_token_id"] == 2


def test_no_files_of_an_adapter_leave_the_base_s(base, adapter, capsys) -> None:
    out = merged(capsys, base, adapter)
    for path in base.glob("token*"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_combined_adapters_agree_on_a_tokenizer_or_one_is_named(base, tmp_path, capsys) -> None:
    one, two, bare = (save_adapter(tmp_path / name) for name in ("one", "two", "bare"))
    own = save_own_tokenizer(base, one)
    how = ("--combine", "cat")
    assert loaded(merged(capsys, base, one, bare, flags=how))(TEXT).input_ids == own(TEXT).input_ids
    save_base_tokenizer(two)  # the base's, which is another than the first adapter's
    given = [each for path in (one, two) for each in ("--adapter", f"{path.name}={path}")]
    refused = call(capsys, "merge", "--base", base, *given, "--out", tmp_path / "no", *how)
    assert refused.code == 3
    assert "differ in the tokenizer" in refused.message
    assert "--head-from" in refused.message
    out = merged(capsys, base, one, two, flags=(*how, "--head-from", "one"))
    assert loaded(out)(TEXT).input_ids == own(TEXT).input_ids
    out = merged(capsys, base, one, two, flags=(*how, "--head-from", "two"))
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_a_merge_with_another_padding_token_is_verified(tiny, tmp_path, capsys) -> None:
    base, own = tmp_path / "base", tmp_path / "own"
    shutil.copytree(tiny.base("llama"), base)
    shutil.copytree(tiny.adapter(base), own)
    save_base_tokenizer(own, pad_token="w7")
    out = merged(capsys, base, own, flags=("--verify",))
    assert table(out / "config.json")["pad_token_id"] == 7


# ------------------------------------------------------------------------------------------ labels


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    shapes = {**shapes_of_lora(), **HEAD}
    return save_adapter(tmp_path / "classifier", shapes, task_type="SEQ_CLS")


def test_names_of_the_base_s_head_are_not_those_of_the_adapter_s(base, classifier, capsys) -> None:
    names = {"0": "joy", "1": "anger", "2": "fear"}
    table(base / "config.json", id2label=names, problem_type="multi_label_classification")
    out = merged(capsys, base, classifier)
    config = table(out / "config.json")
    assert any("joy, anger, fear" in note for note in read_record(out).notes)
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert config["label2id"] == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    assert "problem_type" not in config


def test_names_in_the_adapter_s_own_config_are_taken(base, classifier, capsys) -> None:
    own = {"0": "no", "1": "yes", "2": "so"}
    table(classifier / "config.json", model_type="other", id2label=own, vocab_size=7,
          problem_type="multi_label_classification")  # fmt: skip
    config = table(merged(capsys, base, classifier) / "config.json")
    assert (config["id2label"], config["model_type"]) == (own, "bert")
    assert (config["vocab_size"], config["problem_type"]) == (200, "multi_label_classification")
    table(classifier / "config.json", id2label={"0": "of", "1": "another"})
    config = table(merged(capsys, base, classifier) / "config.json")
    assert config["id2label"]["2"] == "LABEL_2"


def test_the_head_of_one_combined_adapter_is_taken_with_its_labels(
    base, classifier, tmp_path, capsys
) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    shapes = {**shapes_of_lora(), **{name: (2, *shape[1:]) for name, shape in HEAD.items()}}
    other = save_adapter(tmp_path / "other", shapes, task_type="SEQ_CLS")
    table(other / "config.json", id2label={"0": "no", "1": "yes"})
    both = ["--adapter", f"classifier={classifier}", "--adapter", f"other={other}"]
    refused = call(capsys, "merge", "--base", base, *both, "--combine", "cat", "--out",
                   tmp_path / "no")  # fmt: skip
    assert refused.code == 3
    assert "--head-from classifier" in refused.message
    out = merged(capsys, base, classifier, other,
                 flags=("--combine", "cat", "--head-from", "other"))  # fmt: skip
    assert table(out / "config.json")["id2label"] == {"0": "no", "1": "yes"}
    wanted = load_file(other / "adapter_model.safetensors")
    found = load_file(out / "model.safetensors")["classifier.weight"]
    assert np.array_equal(found, wanted["base_model.model.classifier.weight"])
    unknown = call(capsys, "merge", "--base", base, *both, "--combine", "cat", "--head-from",
                   "third", "--out", tmp_path / "no")  # fmt: skip
    assert unknown.code == 2
    assert "classifier, other" in unknown.message
