"""Lines of a data set that are damaged, endless or odd: read, or refused with their number."""

from __future__ import annotations

import json
import random
import time
from typing import Any, Final

import pytest

from lora_export.core.errors import InputError, UsageError
from lora_export.verification.datasets.lines import read_lines
from tests.helpers.odd_values import mutated, with_each

GOOD: Final = b'{"text": "a b", "label": 0}\n'

REFUSED: Final[dict[str, tuple[bytes, str]]] = {
    "a line of 5 MB": (b'{"text": "' + b"x" * (5 << 20) + b'"}', "line 2 of .* is longer than"),
    "nothing but a long line": (b"x" * (5 << 20), "line 2 of .* is longer than"),
    "deep lists": (b'{"text": ' + b"[" * 200 + b"]" * 200 + b"}", "line 2 of .*nested more than"),
    "bottomless lists": (b"[" * 1_000_000, "line 2 of .*is not JSON"),
    "an enormous integer": (b'{"label": ' + b"9" * 10_000 + b"}", "line 2 of .*is not JSON"),
    "a NUL": (b'{"text": "\x00"}', "line 2 of .*control character"),
    "NULs": (b"\x00" * 100, "line 2 of .*is not JSON"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), "line 2 of .*utf-8"),
    "Latin-1": ('{"text": "é"}'.encode("latin-1"), "line 2 of .*utf-8"),
    "half a character": (b'{"text": "\\ud800"}', "line 2 of .*half of a character"),
    "a list": (b"[1]", "line 2 of .*not an object"),
    "a number": (b"7", "line 2 of .*not an object"),
    "not a number": (b"NaN", "line 2 of .*it is NaN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_line_that_is_no_object_is_named_at_once(case, tmp_path):
    line, words = REFUSED[case]
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    start = time.perf_counter()
    with pytest.raises(InputError, match=words) as refused:
        read_lines(path, "an object")
    assert len(refused.value.message) < 500
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n \t\n"])
def test_a_file_without_examples_is_refused(data, tmp_path):
    (tmp_path / "data.jsonl").write_bytes(data)
    with pytest.raises(InputError, match="no examples"):
        read_lines(tmp_path / "data.jsonl", "an object")


def test_a_byte_order_mark_and_carriage_returns_are_no_text(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": 2}')
    lines = read_lines(tmp_path / "data.jsonl", "an object")
    assert [(each.number, each.values) for each in lines] == [(1, {"a": 1}), (3, {"b": 2})]


EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "text-classification": {"text": "a b", "label": 0},
    "token-classification": {"tokens": ["a", "b"], "tags": [0, 1]},
    "question-answering": {"question": "a", "context": "b a", "answers": ["a"]},
    "text-generation": {"text": "a b c"},
}
"""An example of each task."""


@pytest.mark.parametrize("task", EXAMPLES)
def test_odd_examples_are_read_or_refused(task, load):
    numbers = random.Random(19)
    example = EXAMPLES[task]
    odd = [table for _, table in with_each(example)]
    odd += [mutated(example, numbers) for _ in range(50)]
    for table in odd:
        text = json.dumps(table).replace("x" * 100_000, "x" * 1_000)
        try:
            load(f"{json.dumps(example)}\n{text}\n", task=task)
        except (InputError, UsageError) as error:
            if "\n" in error.message or len(error.message) > 1_000:
                raise AssertionError(table) from error
