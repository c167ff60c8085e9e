"""Output of libraries, and streams that cannot be written."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from typing import TextIO, cast

import pytest

from lora_export.ondevice.printable import FinishedLine
from lora_export.ondevice.printable_stream import PrintableStream

_PROGRAM = """
import sys
from lora_export.ondevice.printable_stream import run_protected
def run():
    {body}
    return {code}
sys.exit(run_protected(run))
"""


class _Refusing(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", text[:1])


def test_what_a_library_prints_is_escaped_and_keeps_its_lines() -> None:
    under = io.StringIO()
    stream = PrintableStream(under)
    print("a\x1b[2J\u202eb\tc\n50 %\r", file=cast("TextIO", stream))
    stream.writelines(["d\x9b", "e\n"])
    assert under.getvalue() == "a\\x1b[2J\\u202eb\tc\n50 %\r\nd\\x9be\n"


def test_a_finished_line_and_the_moves_between_progress_bars_pass() -> None:
    under = io.StringIO()
    stream = PrintableStream(under)
    stream.write(FinishedLine("\x1b[1mbold"))
    stream.write("\n\x1b[A")
    assert under.getvalue() == "\x1b[1mbold\n\x1b[A"


def test_bytes_are_refused() -> None:
    under = io.StringIO()
    with pytest.raises(TypeError):
        PrintableStream(under).write(cast("str", b"x"))
    assert not under.getvalue()


def test_the_first_failure_is_kept_and_the_rest_is_dropped() -> None:
    stream = PrintableStream(_Refusing())
    assert stream.write("a") == 1
    stream.write("b")
    stream.flush()
    assert stream.failure is not None
    assert stream.failure.errno == errno.ENOSPC


@pytest.mark.parametrize("code", [0, 5])
@pytest.mark.parametrize(
    ("shell", "changed", "said"),
    [
        ("{0} > /dev/full", True, "error: the result cannot be written to the standard output: "),
        ("{0} 2> /dev/full", False, ""),
        ("{0} >&-", False, ""),
        ("{0} 2>&-", False, ""),
        ("{0} <&- >&- 2>&-", False, ""),
        ("{{ {0}; echo $? >&3; }} | true; exit $(cat <&3)", False, None),
    ],
)
def test_a_stream_that_cannot_be_written_ends_in_a_sentence_or_silence(
    shell: str, code: int, *, changed: bool, said: str | None
) -> None:
    program = _PROGRAM.format(body="print('x' * 200_000)", code=code)
    line = shell.format(f'"{sys.executable}" -c "$PROGRAM"')
    if said is None:  # the code of the left side of a pipe
        line = f'f=$(mktemp); exec 3<>"$f"; {line.replace("exit $(cat <&3)", "exit $(cat $f)")}'
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env={"PROGRAM": program}, check=False
    )
    assert done.returncode == (3 if changed and code == 0 else code)
    assert done.stderr.startswith(said or "")
    assert done.stderr.count("\n") == (1 if said else 0)


def test_a_closed_standard_descriptor_is_given_to_no_file() -> None:
    body = "import os; assert os.open('/dev/null', os.O_RDONLY) > 2"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable,
         _PROGRAM.format(body=body, code=7)],
        check=False,
    )  # fmt: skip
    assert done.returncode == 7


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C"}])
def test_a_terminal_that_lacks_a_character_gets_its_escape(environment: dict[str, str]) -> None:
    body = "print('\\u2713 \\ud800')"
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(body=body, code=0)],
        capture_output=True, check=True, env=environment,
    )  # fmt: skip
    check = "\\u2713" if "PYTHONIOENCODING" in environment else "\u2713"
    assert done.stdout.decode() == f"{check} \\ud800\n"
