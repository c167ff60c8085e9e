"""Foreign names in errors are escaped."""

from __future__ import annotations

import pickle

from lora_export.ondevice.device_errors import DeviceError, InputError, LoraExportError
from lora_export.ondevice.printable import HINT_LIMIT, LINE_LIMIT


def test_a_message_is_one_line_with_nothing_hidden() -> None:
    error = InputError("bad\n\x1b[2Jname\u202e", hint="do\nthis\x07")
    assert error.message == r"bad\n\x1b[2Jname\u202e"
    assert error.hint == r"do\nthis\x07"
    assert str(error) == f"{error.message}\n{error.hint}"
    assert error.args == (error.message,)


def test_items_are_lines_of_their_own() -> None:
    error = LoraExportError("2 tensors do not fit:", items=["a\nb", "c"], hint="Look.")
    assert str(error) == "2 tensors do not fit:\n  a\\nb\n  c\nLook."


def test_a_message_never_echoes_all_of_a_long_value() -> None:
    error = InputError("x" * 1_000_000, hint="y" * 1_000_000)
    assert len(error.message) <= LINE_LIMIT
    assert "characters left out" in error.message
    assert len(error.hint or "") <= HINT_LIMIT


def test_a_copy_of_an_error_says_the_same() -> None:
    error = DeviceError("bad\x1b", kind="input")
    assert pickle.loads(pickle.dumps(InputError("a\nb"))).message == r"a\nb"
    assert error.message == r"bad\x1b"
    assert error.exit_code == 3
