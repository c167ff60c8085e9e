"""The command line as such: help, usage errors, recipes that are wrong, what --json prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import lora_export
from lora_export.cli import COMMANDS
from tests.cli.running import call, command

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_each_command_explains_itself(capsys, name: str, flag: str) -> None:
    result = call(capsys, name, flag)
    assert result.code == 0
    assert result.out.startswith(f"Usage: lora-export {name}")
    assert result.err == ""
    assert "--json" in result.out or "\nCommands:\n" in result.out  # a group's commands have it


def test_help_lists_commands_and_exit_codes(capsys) -> None:
    result = call(capsys, "--help")
    assert result.code == 0
    for name, (_, line) in COMMANDS.items():
        assert name in result.out
        assert line.split(",")[0][:30] in result.out
    assert "5 parity failed" in result.out


def test_version(capsys) -> None:
    result = call(capsys, "--version")
    assert result.code == 0
    assert lora_export.__version__ in result.out


def test_no_command_shows_help(capsys) -> None:
    result = call(capsys)
    assert result.code == 2
    assert "Usage: lora-export" in result.out + result.err


def test_console_script_and_module_are_one(capsys) -> None:
    result = command("--version")
    assert (result.code, result.out) == (0, call(capsys, "--version").out)


USAGE_ERRORS = {
    "unknown command": (["no-such-command"], "no-such-command"),
    "unknown option": (["export", "--no-such-option"], "--no-such-option"),
    "missing argument": (["add"], "EXPORT"),
    "missing option": (["add", "out"], "--adapter"),
    "not a number": (["export", "--opset", "many"], "many"),
    "no output": (["export", "--base", "b"], "--out is missing"),
    "no base": (["export", "--out", "o"], "--base is missing"),
    "no such recipe": (["merge-and-build", "nowhere.yaml"], "nowhere.yaml"),
    "opset too low": (["export", "--base", "b", "--out", "o", "--opset", "9"], "--opset must be "),
    "negative ratio": (
        ["merge-and-build", "--base", "b", "--out", "o", "--max-ratio", "-1"],
        "--max-ratio must be greater than 0, got",
    ),
}


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_usage_error_is_exit_2_and_names_the_fault(tmp_path, monkeypatch, capsys, case) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, word = USAGE_ERRORS[case]
    result = call(capsys, *arguments)
    assert result.code == 2
    assert word in result.message
    assert result.out == ""
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_json_prints_one_document_for_a_usage_error(tmp_path, monkeypatch, capsys, case) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, word = USAGE_ERRORS[case]
    result = call(capsys, *arguments, "--json")
    assert result.code == 2
    error = json.loads(result.out)["error"]
    assert error["kind"] == "UsageError"
    shown = "\n".join(filter(None, (error["message"], error["hint"])))
    assert word in shown
    assert result.message == f"{shown}\n"


def test_usage_error_says_what_the_command_takes(capsys) -> None:
    error = call(capsys, "add", "out", "--no-such-option", "--json").document["error"]
    assert "--no-such-option" in error["message"]
    assert error["hint"] == "Usage: lora-export add [OPTIONS] EXPORT\nSee: lora-export add --help"
    group = call(capsys, "no-such-command", "--json").document["error"]
    assert group["hint"].endswith("See: lora-export --help")


def test_json_prints_one_document_for_bad_input(tmp_path: Path, capsys) -> None:
    result = call(capsys, "verify", tmp_path / "nowhere", "--json")
    assert result.code == 3
    error = json.loads(result.out)["error"]
    assert error["kind"] == "ExportDirectoryError"
    assert "nowhere" in error["message"]
    assert error["hint"]
    assert "error: " in result.err


RECIPES = {
    "unknown key": ("base: b\noutput: o\nadapter: []\n", "adapter", "adapters"),
    "unknown section key": ("base: b\noutput: o\nverify: {datset: x}\n", "datset", "dataset"),
    "unknown latency key": ("base: b\noutput: o\nlatency: {maxratio: 1}\n", "maxratio", "max_rati"),
    "unknown adapter key": (
        "base: b\noutput: o\nadapters: [{sorce: x, source: y}]\n",
        "sorce",
        "source",
    ),
    "missing key": ("output: o\n", "base", "base"),
    "wrong type": ("base: b\noutput: o\nlabels: red\n", "labels", "red"),
    "wrong choice": ("base: b\noutput: o\nmode: fused\n", "mode", "fused"),
    "wrong number": ("base: b\noutput: o\nlatency: {rounds: 1}\n", "rounds", "1"),
    "unknown triton key": ("base: b\noutput: o\ntriton: {bakcend: x}\n", "bakcend", "backend"),
    "a list": ("- base\n", "recipe", "keys"),
    "empty": ("", "recipe", "keys"),
    "not YAML": ("base: [\n", "YAML", "recipe"),
    "a Python object": ("base: !!python/object/apply:os.getcwd []\n", "YAML", "recipe"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_wrong_recipe_is_exit_2_and_names_the_key(tmp_path: Path, capsys, case: str) -> None:
    text, *words = RECIPES[case]
    (tmp_path / "recipe.yaml").write_text(text)
    result = call(capsys, "merge-and-build", tmp_path / "recipe.yaml")
    assert result.code == 2
    for word in words:
        assert word in result.message
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "case",
    [("--task", "translation", "text-classification"), ("--target", "toaster", "onnxruntime-cpu")],
    ids=lambda case: case[0],
)
def test_unknown_choice_lists_the_known(tiny, tmp_path, capsys, case) -> None:
    flag, value, known = case
    base = tiny.base("bert", "text-classification")
    out = tmp_path / "out"
    result = call(capsys, "export", "--base", base, flag, value, "--out", out)
    assert result.code == 2
    assert value in result.message
    assert known in result.message
    assert not (tmp_path / "out").exists()


def test_unforeseen_error_is_exit_1_without_a_traceback(tmp_path, monkeypatch, capsys) -> None:
    import lora_export.commands.remove

    def fail(*_: object, **__: object) -> None:
        msg = "the sky has fallen"
        raise ZeroDivisionError(msg)

    monkeypatch.setattr(lora_export.commands.remove, "remove", fail)
    result = call(capsys, "remove", tmp_path, "x", "--json")
    assert result.code == 1
    assert "the sky has fallen" in result.message
    assert "--debug" in result.message
    assert json.loads(result.out)["error"]["kind"] == "ZeroDivisionError"
    assert "Traceback" in call(capsys, "remove", tmp_path, "x", "--debug").err


def test_debug_shows_the_traceback_of_a_foreseen_error(tmp_path: Path, capsys) -> None:
    result = call(capsys, "verify", tmp_path, "--debug")
    assert result.code == 3
    assert "Traceback" in result.err


def test_quiet_prints_no_progress(tiny, tmp_path: Path, capsys) -> None:
    base = tiny.base("bert", "text-classification")
    arguments = ("export", "--base", base, "--task", "text-classification", "--out")
    assert call(capsys, *arguments, tmp_path / "a").err != ""
    quiet = call(capsys, *arguments, tmp_path / "b", "--quiet")
    assert quiet.err == ""
    assert str(tmp_path / "b") in quiet.out
