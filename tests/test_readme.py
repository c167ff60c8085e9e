"""Everything that the README names exists: commands, options, make targets, files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from lora_export.cli import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")

BLOCKS = re.findall(
    r"^```(?:sh|bash|console|shell)[^\n]*\n(.*?)^```", README, re.DOTALL | re.MULTILINE
)
COMMANDS = [
    line.removeprefix("$ ").strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"(\$ )?(lora-export|make)\b", line)
]
LINKS = [
    target
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README)
    if not re.match(r"[a-z]+:", target)
]


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("lora-export")])
def test_command_and_its_options_exist(line: str) -> None:
    _, *words = words_of(line)
    if not words or words[0].startswith("-"):
        return
    context = click.Context(cli)
    found = cli.get_command(context, words[0])
    assert found is not None, f"no command {words[0]!r}"
    if isinstance(found, click.Group):
        _, *words = words
        found = found.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
    known = {flag for p in found.params for flag in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    given = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
    assert given <= known


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("make")])
def test_make_target_exists(line: str) -> None:
    targets = re.findall(
        r"^([a-z-]+[a-z0-9]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    wanted = [w for w in words_of(line)[1:] if not w.startswith("-") and "=" not in w]
    assert set(wanted) <= set(targets)


@pytest.mark.parametrize("target", LINKS)
def test_linked_file_exists(target: str) -> None:
    assert (ROOT / target).exists()
