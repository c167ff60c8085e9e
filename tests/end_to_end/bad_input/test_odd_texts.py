"""Recipes, configs and tables with values of another type: one sentence, exit 2 or 3."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.cli.running import call
from tests.end_to_end.bad_input.spoiling import edit_json

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.bad_input.spoiling import Inputs

_NESTED: Final = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    + [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in ("ab", "bc", "cd", "de", "ef", "fg")]
)

RECIPES: Final = {
    "aliases of aliases": (_NESTED, "more than 10000 values"),
    "no integer": ("opset: !!int x", "'x' is not an int"),
    "no number": ("latency: {max_ratio: !!float ''}", "'' is not a float"),
    "no date": ("task: !!timestamp x", "timestamp"),
    "a date as a number": ("opset: 2001-99-99", "opset"),
    "a list as a name": ("adapters: [{name: [a], source: x}]", "adapters.0.name"),
    "a list as a key": ("? [a]\n: 1", "a key is a list"),
    "an object": ("task: !!python/object/apply:os.getcwd []", "python"),
}


@pytest.mark.parametrize("scale", [(), ("--scale", "2")], ids=["alone", "with a scale"])
@pytest.mark.parametrize("case", RECIPES)
def test_an_odd_recipe_is_exit_2(case: str, scale: tuple[str, ...], tmp_path: Path, capsys) -> None:
    text, words = RECIPES[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"base: b\noutput: {tmp_path / 'out'}\n{text}\n")
    result = call(capsys, "merge-and-build", path, *scale)
    assert result.code == 2
    assert words in result.message
    assert len(result.message) < 1_000


ADAPTERS: Final[dict[str, dict[str, Any]]] = {
    "a list as the task": {"task_type": ["SEQ_CLS"]},
    "a table as the task": {"task_type": {"a": 1}},
    "rows beyond 64 bits": {"trainable_token_indices": [2**70]},
    "a number of targets": {"target_modules": 1.5},
    "a number of saved modules": {"modules_to_save": 5},
    "null among saved modules": {"modules_to_save": [None]},
    "a rank as text": {"r": "4"},
    "alpha as text": {"lora_alpha": "16"},
    "a flag as text": {"use_rslora": "yes"},
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_odd_adapter_config_is_exit_3(case: str, inputs: Inputs, capsys) -> None:
    changes = ADAPTERS[case]
    edit_json(inputs.adapter / "adapter_config.json", **changes)
    adapter, two = f"one={inputs.adapter}", f"two={inputs.adapter}"
    for command in (
        ("inspect", inputs.adapter),
        ("merge", "--base", inputs.base, "--adapter", adapter, "--out", inputs.out),
        ("merge", "--base", inputs.base, "--adapter", adapter, "--adapter", two, "--combine",
         "linear", "--out", inputs.out),
        ("adapter", "convert", inputs.adapter, "--to", "peft", "--out", inputs.out),
        ("analyze", "--base", inputs.base, inputs.adapter),
    ):  # fmt: skip
        result = call(capsys, *command)
        assert result.code == 3, command
        assert next(iter(changes)) in result.message
        assert not inputs.out.exists()


BASES: Final[dict[str, dict[str, Any]]] = {
    "a text as the size": {"hidden_size": "8"},
    "layers without end": {"num_hidden_layers": 2**70},
    "more layers than tensors": {"num_hidden_layers": 100_000},
    "a text as architectures": {"architectures": "BertModel"},
    "a text as a tie": {"tie_word_embeddings": "yes"},
    "a list as the names of classes": {"id2label": ["a"]},
    "a table as the padding": {"pad_token_id": {"a": 1}},
    "a list as a section": {"text_config": [1]},
    "a number as the type": {"model_type": 5},
}


@pytest.mark.parametrize("case", BASES)
def test_an_odd_base_config_is_exit_3(case: str, inputs: Inputs, capsys) -> None:
    changes = BASES[case]
    edit_json(inputs.base / "config.json", **changes)
    adapter = f"one={inputs.adapter}"
    for command in (
        ("inspect", inputs.base),
        ("merge", "--base", inputs.base, "--adapter", adapter, "--out", inputs.out),
        ("export", "--base", inputs.base, "--adapter", adapter, "--out", inputs.out),
    ):
        result = call(capsys, *command)
        assert result.code == 3, command
        assert next(iter(changes)) in result.message


@pytest.mark.parametrize(
    "name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("text", ["[]", "[1]", "null", '"x"', "{", "\ufeff{}"])
def test_a_companion_that_is_no_table_is_exit_3(
    name: str, text: str, inputs: Inputs, capsys
) -> None:
    (inputs.base / name).write_text(text, encoding="utf-8")
    adapter = f"one={inputs.adapter}"
    result = call(capsys, "merge", "--base", inputs.base, "--adapter", adapter, "--out", inputs.out)
    assert result.code == 3
    assert name in result.message


@pytest.mark.parametrize(
    "shard", ["x" * 300, "a\0b", "../a", "/etc/passwd", 5, None, ["a"], {"a": 1}], ids=repr
)
def test_a_shard_that_is_no_file_name_is_exit_3(shard: object, inputs: Inputs, capsys) -> None:
    (inputs.base / "model.safetensors").unlink()
    index = {"weight_map": {"bert.x": shard}}
    (inputs.base / "model.safetensors.index.json").write_text(json.dumps(index))
    result = call(capsys, "inspect", inputs.base)
    assert result.code == 3
    assert "is not a plain file name" in result.message


@pytest.mark.parametrize(
    "command",
    [
        ("verify", "x", "--seed", "-1"),
        ("verify", "x", "--seed", str(2**64)),
        ("bench", "x", "--seed", "-1"),
        ("generate", "x", "--prompt", "a", "--seed", str(2**64)),
        ("merge", "--base", "b", "--adapter", "a", "--out", "o", "--seed", "-1"),
        ("analyze", "x", "--rank", "0"),
    ],
    ids=" ".join,
)
def test_a_number_that_means_nothing_is_exit_2(command: tuple[str, ...], capsys) -> None:
    assert call(capsys, *command).code == 2
