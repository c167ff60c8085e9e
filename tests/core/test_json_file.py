"""JSON that others have written: limits, encodings, and what cannot be printed."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Final

import pytest

from lora_export.core.errors import CheckpointError
from lora_export.core.json_file import read_json, read_table

if TYPE_CHECKING:
    from pathlib import Path

HINTS: Final = {"absent": "absent", "damaged": "damaged"}
LIMIT_BYTES: Final = 1 << 20

REFUSED: Final[dict[str, tuple[bytes, str]]] = {
    "nothing": (b"", "not readable JSON"),
    "deep lists": (b"[" * 200 + b"]" * 200, "nested more than 100 levels"),
    "deep tables": (b'{"a":' * 200 + b"1" + b"}" * 200, "nested more than 100 levels"),
    "bottomless lists": (b"[" * 500_000, "not readable JSON"),
    "an integer of a million digits": (b"9" * 1_000_000, "not readable JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "UTF-32": ('{"a": 1}'.encode("utf-32"), "utf-8"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "utf-8"),
    "half a character": (b'{"a": "\\ud800"}', "surrogates"),
    "half a character as a key": (b'{"\\uDFFF": 1}', "surrogates"),
    "halves in the wrong order": (b'["\\ude00\\ud83d"]', "surrogates"),
    "half a character, unescaped": ('["\ud800"]'.encode("utf-8", "surrogatepass"), "utf-8"),
    "a NUL": (b'{"a": "\x00"}', "control character"),
    "a number that is none": (b'{"a": [{"dropout": [NaN]}]}', "'a.dropout' is NaN"),
    "a megabyte and more": (b" " * LIMIT_BYTES + b"{}", "larger than"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_or_written_is_refused_at_once(case: str, tmp_path: Path) -> None:
    data, words = REFUSED[case]
    path = tmp_path / "config.json"
    path.write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=words) as refused:
        read_json(path, LIMIT_BYTES, CheckpointError, **HINTS)
    assert len(refused.value.message) < 400
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("text", ["[]", "null", "1", '"a"', "[{}]", "Infinity"])
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError, match="does not hold a table"):
        read_table(tmp_path / "tokenizer_config.json", LIMIT_BYTES, CheckpointError, **HINTS)


def test_whole_characters_and_infinity_are_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"\\ud83d\\ude00": "\\\\ud800", "a": Infinity, "b": ' + b"[" * 90 + b"]" * 90
                     + b"}")  # fmt: skip
    table = read_table(path, LIMIT_BYTES, CheckpointError, **HINTS)
    assert table["\U0001f600"] == "\\ud800"
    assert table["a"] == float("inf")


def test_any_bytes_are_read_or_refused(tmp_path: Path) -> None:
    numbers = random.Random(7)
    seed = json.dumps({"a": [1, 2.5, "x\ud83d\ude00"], "b": {"c": None}}).encode()
    path = tmp_path / "config.json"
    for _ in range(500):
        data = bytearray(seed)
        for _ in range(numbers.randint(1, 4)):
            data[numbers.randrange(len(data))] = numbers.randrange(256)
        path.write_bytes(bytes(data))
        try:
            json.dumps(read_json(path, LIMIT_BYTES, CheckpointError, **HINTS))
        except CheckpointError:
            continue
