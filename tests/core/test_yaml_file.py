"""YAML from somebody's file: plain values, limits, and one line that says what is wrong."""

from __future__ import annotations

import contextlib
import random
import time
from itertools import pairwise
from typing import Final

import pytest

from lora_export.core.yaml_file import YamlError, parse_yaml, read_yaml


def _multiplied(pattern: str, times: int) -> str:
    """Return anchors a, b, …, each of which holds `times` aliases of the one before."""
    rows = [f"{b}: &{b} {pattern % ', '.join([f'*{a}'] * times)}" for a, b in pairwise("abcdefgh")]
    return "\n".join(["a: &a {k: 1}", *rows])


REFUSED: Final = {
    "aliases of aliases": (_multiplied("[%s]", 10), "more than 10000 values"),
    "merges of merges": (_multiplied("{<<: [%s]}", 20), "more than 10000 values"),
    "many values": (f"a: [{'1, ' * 20_000}]", "more than 10000 values"),
    "a value inside itself": ("a: &a [*a]", "contains itself"),
    "a table inside itself": ("&a {b: *a}", "contains itself"),
    "deep lists": ("[" * 200_000, "nested too deeply"),
    "deep tables": ("{a: " * 60_000, "nested too deeply"),
    "deep blocks": ("- " * 100_000, "nested too deeply"),
    "no integer": ("a: !!int x", "'x' is not an int"),
    "an empty integer": ("a: !!int ''", "'' is not an int"),
    "an enormous integer": (f"a: {'9' * 100_000}", "is not an int"),
    "no number": ("a: !!float ''", "'' is not a float"),
    "no truth": ("a: !!bool x", "'x' is not a bool"),
    "a list as text": ("a: !!str [x]", "expected a scalar node"),
    "a date by its tag": ("a: !!timestamp x", "tag:yaml.org,2002:timestamp"),
    "bytes": ("a: !!binary aGVsbG8=", "tag:yaml.org,2002:binary"),
    "a set": ("a: !!set {x}", "tag:yaml.org,2002:set"),
    "an ordered map": ("a: !!omap [x: 1]", "tag:yaml.org,2002:omap"),
    "a Python object": ("a: !!python/object/apply:os.getcwd []", "tag:yaml.org,2002:python"),
    "a long tag": (f"a: !{'x' * 100_000} 1", "could not determine a constructor"),
    "a list as a key": ("? [a]\n: 1", "a key is a list or a table"),
    "a table as a key": ("? {a: 1}\n: 1", "a key is a list or a table"),
    "a key twice": ("a: 1\n'a': 2", "'a' stands twice"),
    "thousands of keys twice": ("a: 1\n" * 4_000, "'a' stands twice"),
    "a NUL": ('a: "x\\0y"', "no file name can have"),
    "half a character": ('a: "\\ud800"', "no file name can have"),
    "two documents": ("a: 1\n---\nb: 1", "another document"),
    "an unknown alias": ("a: *b", "undefined alias"),
    "a control character": ("a: \x01", "special characters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_recipe_never_needs_is_refused_in_a_line_at_once(case: str) -> None:
    text, words = REFUSED[case]
    start = time.perf_counter()
    with pytest.raises(YamlError) as refused:
        parse_yaml(text)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)
    assert time.perf_counter() - start < 5


def test_a_date_is_text_and_an_alias_is_what_it_stands_for() -> None:
    text = "name: 2001-99-99\nwhen: 2001-12-14\na: &a {x: 1}\nb: *a\nc: {<<: *a, x: 2, y: 3}\n"
    assert parse_yaml(text) == {
        "name": "2001-99-99", "when": "2001-12-14", "a": {"x": 1}, "b": {"x": 1},
        "c": {"x": 2, "y": 3},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "value"),
    [("\ufeffa: 1".encode(), {"a": 1}), (b"", None), (b"# nothing", None), (b"a: ~", {"a": None})],
)
def test_a_byte_order_mark_and_an_empty_file_are_read(data, value, tmp_path) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    assert read_yaml(tmp_path / "a.yaml") == value


@pytest.mark.parametrize("data", [b"\xff\xfea\x00", b"a: \xc3\x28", "a: é".encode("latin-1")])
def test_what_is_not_utf_8_is_refused(data, tmp_path) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(YamlError, match="utf-8"):
        read_yaml(tmp_path / "a.yaml")


PIECES: Final = (
    "a", "b", ": ", "\n", "- ", "&a ", "*a", "[", "]", "{", "}", "!!int ", "!!str ", "!x ", "'",
    '"', "|\n", "? ", "<<: ", "1", ".inf", "0x", "1:99", "~", "#", "%", "=", "  ", "\\u", "\t",
    "2001-01-99",
)  # fmt: skip


def test_any_text_is_read_or_refused() -> None:
    numbers = random.Random(1)
    for _ in range(2_000):
        text = "".join(numbers.choices(PIECES, k=numbers.randint(1, 20)))
        with contextlib.suppress(YamlError):
            parse_yaml(text)
