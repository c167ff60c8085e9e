"""Help: sections, defaults, values and examples of every command; suggestions and completion."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

import click
import pytest

from lora_export.cli import COMMAND_SECTIONS, COMMANDS, cli
from lora_export.cli.help_format import SECTIONS
from lora_export.core.targets import TARGETS
from lora_export.graph.spec.tasks import TASKS
from tests.cli.golden_help import GOLDEN, WIDTH, helps, text
from tests.cli.running import call, python

if TYPE_CHECKING:
    from collections.abc import Iterator

HELPS: Final = helps()
_OPTION: Final = re.compile(r"--[a-z][a-z0-9-]*")


def test_the_golden_text_is_current() -> None:
    assert text() == GOLDEN.read_text("utf-8"), "python -m tests.cli.golden_help"


def test_nothing_is_wider_than_the_terminal() -> None:
    wide = [line for each in HELPS.values() for line in each.split("\n") if len(line) > WIDTH]
    assert wide == []


def test_commands_stand_in_sections_most_used_first() -> None:
    found = HELPS["lora-export"]
    places = [found.index(f"\n{section}:\n") for section in COMMAND_SECTIONS]
    assert places == sorted(places)
    listed = found[places[0] : found.index("\nOptions:\n")]
    names = re.findall(r"^  ([a-z-]+) {2,}\S", listed, re.MULTILINE)
    assert names == list(COMMANDS)


@pytest.mark.parametrize("name", HELPS)
def test_each_option_has_a_section_and_an_explanation(name: str) -> None:
    for command in _commands(name):
        for each in command.params:
            if isinstance(each, click.Option):
                assert getattr(each, "section", None) in SECTIONS, each.opts
                assert each.help, each.opts


@pytest.mark.parametrize("name", [each for each in HELPS if each != "lora-export adapter"])
def test_each_example_takes_options_that_exist(name: str) -> None:
    _, _, examples = HELPS[name].partition("\nExamples:\n")
    lines = re.findall(r"^ *lora-export (?:.*\\\n)*.*", examples, re.MULTILINE)
    assert lines
    for line in lines:
        words = shlex.split(line.replace("\\\n", " "))
        path = max((p for p in HELPS if words[: len(p.split())] == p.split()), key=len)
        known = {opt for each in _commands(path) for p in each.params for opt in p.opts}
        if path in {"lora-export bundle", "lora-export triton"}:
            below = _commands(f"{path} {'pack' if path.endswith('bundle') else 'write'}")
            known |= {opt for each in below for p in each.params for opt in p.opts}
        assert {word for word in words if word.startswith("-")} <= known, line


def test_values_and_defaults_are_shown() -> None:
    found = " ".join(HELPS["lora-export merge-and-build"].split())
    for word in (*TARGETS, *TASKS, "float32|float16|bfloat16", "merged|swappable|batched"):
        assert word in found
    assert "[default: 1.05]" in found
    assert "[default: onnxruntime-cpu]" not in found  # it can be repeated
    assert "[repeatable; default: onnxruntime-cpu]" in found


@pytest.mark.parametrize("name", HELPS)
def test_out_base_and_dtype_have_their_other_names(name: str) -> None:
    (command,) = _commands(name)
    for each in command.params:
        names = {"--out": {"-o", "--output"}, "--base": {"--model"}, "--dtype": {"--precision"}}
        for main, others in names.items():
            if main in each.opts:
                assert others <= set(each.opts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verfy", "out"], "unknown command 'verfy'; did you mean 'verify'?"),
        (["frobnicate"], "unknown command 'frobnicate'\n"),
        (["export", "--target", "jetson-oren"], "Did you mean 'jetson-orin'? Known: onnxr"),
        (["export", "--target", "foo"], "unknown target 'foo'\nKnown: onnxruntime-cpu"),
        (["export", "--task", "text-clasification"], "Did you mean 'text-classification'?"),
        (["merge", "--base", "b", "-o", "x", "--combine", "tie"], "Did you mean 'ties'?"),
        (["verify", "out", "--metric", "acuracy"], "Did you mean 'accuracy'?"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_misspelling_is_an_error_that_suggests_what_is_close(
    capsys, arguments: list[str], message: str
) -> None:
    result = call(capsys, *arguments)
    assert result.code == 2
    assert message in result.message


def test_an_unknown_dtype_is_unsupported_as_in_a_recipe(capsys) -> None:
    result = call(capsys, "export", "--dtype", "floot16")
    assert result.code == 4
    assert "Did you mean 'float16'?" in result.message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lora-export ver", {"verify"}),
        ("lora-export export --target jetson", {"jetson-orin", "jetson-thor"}),
        ("lora-export export --task image-c", {"image-classification"}),
        ("lora-export verify out --allow", {"--allow-no-effect"}),
    ],
)
def test_the_shell_completes_commands_targets_and_tasks(line: str, words: set[str]) -> None:
    environment = {
        "_LORA_EXPORT_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    result = python("-m", "lora_export", environment=environment)
    assert result.code == 0, result.err
    assert {row.partition(",")[2] for row in result.out.split()} == words


def _commands(name: str) -> Iterator[click.Command]:
    """Return the command that the words of `name` mean."""
    found: click.Command = cli
    for word in name.split()[1:]:
        assert isinstance(found, click.Group)
        below = found.get_command(click.Context(found), word)
        assert below is not None
        found = below
    return iter([found])
