"""The meaning of flags, and the printing of foreign texts."""

from __future__ import annotations

import ast
import io
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import lora_export
from lora_export.cli.console import Console
from lora_export.cli.options import parse_adapter
from lora_export.ondevice.printable import FinishedLine

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

_BAD: Final = "a\x1b[31m\n::error::b\u202e"
_SHOWN: Final = r"a\x1b[31m\n::error::b\u202e"
_PACKAGE: Final = Path(lora_export.__file__).parent
_WRITERS: Final = {
    "cli/terminal.py",  # lines, each escaped
    "cli/generate.py",  # prose, escaped
    "__main__.py",  # a sentence of ours
    "latency/startup.py",  # to the process that started it
    "ondevice/bundle/main.py",  # lines, each escaped
    "ondevice/bundle/device_report.py",  # JSON in ASCII
}
"""The modules that write to the standard streams, and what they write."""


def test_an_adapter_is_a_path_or_a_name_and_a_path(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    path.mkdir()
    assert parse_adapter(str(path)) == {"source": str(path)}
    assert parse_adapter(f"mine={path}") == {"name": "mine", "source": str(path)}


def test_a_name_with_a_slash_is_taken_for_one_where_there_is_no_such_path(tmp_path: Path) -> None:
    odd = tmp_path / "r=8"
    odd.mkdir()
    assert parse_adapter(str(odd)) == {"source": str(odd)}
    assert parse_adapter(f"a/b={odd}") == {"name": "a/b", "source": str(odd)}
    missing = str(tmp_path / "r=9")
    assert parse_adapter(missing) == {"source": missing}


def test_lines_are_escaped_and_stay_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(as_json=False, quiet=False) as console:
        console.start(_BAD, 10)
        console.note(f"note {_BAD}")
        console.finish({}, [_BAD, "::warning::x", FinishedLine("::error title=x::y")])
    found = capsys.readouterr()
    assert found.err == f"{_SHOWN} (10 B)\nnote {_SHOWN}\n"
    assert found.out == f"{_SHOWN}\n\\x3a:warning::x\n::error title=x::y\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_keeps_a_line_of_each_stage_with_its_seconds(monkeypatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Console(as_json=False, quiet=False) as console:
        console.start("tracing the graph")
        console.start(f"writing {_BAD}", 10)
        console.note("a note")
        console.finish({}, [])
    shown = [line for line in _screen(screen.getvalue()) if line.strip()]
    assert [re.sub(r"\d+\.\d s", "0.0 s", line) for line in shown] == [
        "✓ tracing the graph  0.0 s",
        "a note",
        f"✓ writing {_SHOWN}  0.0 s",
    ]


def test_a_stage_that_an_error_ends_is_marked(monkeypatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console = Console(as_json=False, quiet=False)
    console.start("parity of mine")
    console.__exit__(ZeroDivisionError)
    assert any(line.startswith("✗ parity of mine") for line in _screen(screen.getvalue()))


def _screen(text: str) -> list[str]:
    """Return the lines that a terminal shows after `text`: as rich moves its cursor."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", text):
        if part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part == "\r":
            continue  # rich erases the line next
        elif move := re.fullmatch(r"\x1b\[(\d*)A", part):
            row -= int(move[1] or 1)
        elif not part.startswith("\x1b"):
            lines[row] += part
    return lines


def test_json_has_the_exact_text_in_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(as_json=True, quiet=False) as console:
        console.finish({"a": _BAD + "\x7f##[error]"}, [])
    assert capsys.readouterr().out == (
        '{\n "a": "a\\u001b[31m\\n::error::b\\u202e\\u007f#\\u0023[error]"\n}\n'
    )


def test_only_known_modules_write_to_the_standard_streams() -> None:
    found = {
        path.relative_to(_PACKAGE).as_posix()
        for path in _PACKAGE.rglob("*.py")
        if "serving" not in path.parts and any(_writes(ast.parse(path.read_text("utf-8"))))
    }
    assert found == _WRITERS


def _writes(tree: ast.Module) -> Iterator[bool]:
    """Yield True for ``print``, ``click.echo``, ``sys.stdout.write`` and ``sys.stderr.write``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            yield called in {
                "print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write",
            }  # fmt: skip
