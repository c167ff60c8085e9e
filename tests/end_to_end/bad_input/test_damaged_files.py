"""Damaged checkpoints, adapters and configs: exit code 3 or 4, one message, nothing on disk."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest
from safetensors.numpy import save_file

from tests.cli.exports import assert_intact
from tests.end_to_end.bad_input.spoiling import (
    ADAPTER_FILE,
    Inputs,
    assert_refused,
    build,
    edit_header,
    edit_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_good_input_is_accepted(inputs: Inputs, capsys) -> None:
    """The other tests mean something only if this one passes."""
    result = build(capsys, inputs)
    assert result.code == 0, result.err
    assert_intact(inputs.out)
    assert [path.name for path in inputs.out.parent.iterdir()] == ["out"]


def lie_shape(header):
    name = min(n for n in header if n != "__metadata__")
    header[name]["shape"][0] += 1


def lie_past_the_end(header):
    name = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    header[name]["data_offsets"][1] += 4096
    header[name]["shape"] = [
        (header[name]["data_offsets"][1] - header[name]["data_offsets"][0]) // 4
    ]


def lie_overlap(header):
    names = sorted(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"]
    )
    size = header[names[1]]["data_offsets"][1] - header[names[1]]["data_offsets"][0]
    header[names[1]]["data_offsets"] = [0, size]


def lie_negative(header):
    header[max(header)]["data_offsets"][0] = -8


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + path.read_bytes()[8:])


def header_longer_than_file(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", path.stat().st_size) + path.read_bytes()[8:])


def not_json(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 4) + b"{{{{" + path.read_bytes())


def deep_json(path: Path) -> None:
    raw = b"[" * 200_000
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


def git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "truncated": truncate,
    "empty": empty,
    "huge header": huge_header,
    "header longer than file": header_longer_than_file,
    "not JSON": not_json,
    "deep JSON": deep_json,
    "Git LFS pointer": git_lfs_pointer,
    "wrong shape": lambda path: edit_header(path, lie_shape),
    "past the end": lambda path: edit_header(path, lie_past_the_end),
    "overlap": lambda path: edit_header(path, lie_overlap),
    "negative": lambda path: edit_header(path, lie_negative),
    "header is a list": lambda path: edit_header(path, lambda _: []),
    "no tensors": lambda path: save_file({}, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("whose", ["base", "adapter"])
def test_damaged_safetensors(inputs: Inputs, capsys, whose: str, damage: str) -> None:
    folder, name = (
        (inputs.base, "model.safetensors") if whose == "base" else (inputs.adapter, ADAPTER_FILE)
    )
    DAMAGES[damage](folder / name)
    assert_refused(build(capsys, inputs), inputs, 3, str(folder))


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", '{"no": "model_type"}'])
def test_damaged_config_of_the_base(inputs: Inputs, capsys, text) -> None:
    path = inputs.base / "config.json"
    path.unlink() if text is None else path.write_text(text)
    assert_refused(build(capsys, inputs), inputs, 3, "config.json")


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_damaged_config_of_the_adapter(inputs: Inputs, capsys, text) -> None:
    path = inputs.adapter / "adapter_config.json"
    path.unlink() if text is None else path.write_text(text)
    assert_refused(build(capsys, inputs), inputs, 3, "adapter_config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": 5},
        {"r": None},
        {"r": "four"},
        {"lora_alpha": None},
        {"lora_alpha": "much"},
        {"lora_alpha": True},
        {"peft_type": "IA3"},
        {"rank_pattern": {"query": 8}},
        {"rank_pattern": {"(": 8}},
        {"rank_pattern": ["query"]},
        {"alpha_pattern": {"query": None}},
    ],
    ids=str,
)
def test_config_that_contradicts_the_tensors(inputs: Inputs, capsys, changes) -> None:
    edit_json(inputs.adapter / "adapter_config.json", **changes)
    assert_refused(build(capsys, inputs), inputs, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "PROMPT_TUNING"},
        {"peft_type": None},
        {"use_qalora": True},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [1]},
    ],
    ids=str,
)
def test_adapter_of_another_kind_is_unsupported(inputs: Inputs, capsys, changes) -> None:
    edit_json(inputs.adapter / "adapter_config.json", **changes)
    assert_refused(build(capsys, inputs), inputs, 4, *list(changes)[:1] * ("use" in str(changes)))


@pytest.mark.parametrize(
    "changes",
    [{"use_dora": True}, {"lora_bias": True}, {"trainable_token_indices": [1]}],
    ids=str,
)
def test_adapter_without_the_parts_that_its_config_says(inputs: Inputs, capsys, changes) -> None:
    edit_json(inputs.adapter / "adapter_config.json", **changes)
    assert_refused(build(capsys, inputs), inputs, 3, *changes)


def test_base_and_adapter_that_are_not_there(inputs: Inputs, capsys) -> None:
    gone = inputs._replace(base=inputs.base / "nowhere")
    assert_refused(build(capsys, gone), gone, 3, "nowhere")
    gone = inputs._replace(adapter=inputs.adapter / "nowhere")
    assert_refused(build(capsys, gone), gone, 3, "nowhere")


def test_shards_that_contradict_their_index(inputs: Inputs, capsys) -> None:
    (inputs.base / "model.safetensors").rename(inputs.base / "model-1.safetensors")
    index = inputs.base / "model.safetensors.index.json"
    for table, word in (
        ({"weight_map": {"bert.x": "model-1.safetensors"}}, "bert.x"),
        ({"weight_map": {"bert.x": "model-2.safetensors"}}, "model-2.safetensors"),
        ({"weight_map": {"bert.x": "../model-1.safetensors"}}, "../model-1.safetensors"),
        ({"weight_map": {}}, "weight_map"),
        ({}, "weight_map"),
    ):
        index.write_text(json.dumps(table))
        assert_refused(build(capsys, inputs), inputs, 3, word)
