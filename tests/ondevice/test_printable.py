"""Foreign text as it is shown."""

from __future__ import annotations

import json
import subprocess
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_export.ondevice.printable import (
    LINE_LIMIT,
    FinishedLine,
    json_text,
    printable,
    printable_line,
    shell_command,
)

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_ANY = st.text(st.characters(exclude_categories=()), max_size=200)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Überprüfung 语言 🙂", "Überprüfung 语言 🙂"),
        (r"C:\models\x1b", r"C:\models\x1b"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("\x00\x07\x08\x7f", r"\x00\x07\x08\x7f"),
        ("safe\u202etxt.exe", r"safe\u202etxt.exe"),
        ("\u2066\u2069\u200e\u200f\u061c", r"\u2066\u2069\u200e\u200f\u061c"),
        ("zero\u200bwidth\u2060\ufeff", r"zero\u200bwidth\u2060\ufeff"),
        ("soft\xadhyphen", r"soft\xadhyphen"),
        ("\U000e0041\U000e007f", r"\U000e0041\U000e007f"),
        ("line\u2028paragraph\u2029next\x85", r"line\u2028paragraph\u2029next\x85"),
        ("\ud800 \udcff", r"\ud800 \udcff"),
        ("no\xa0break", r"no\xa0break"),
        ("\u3164\u115f\u034f\ufe0f\U000e0100\u2800", r"\u3164\u115f\u034f\ufe0f\U000e0100\u2800"),
        ("\ue000\uffff", r"\ue000\uffff"),
    ],
)
def test_what_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(_ANY)
@example("\u180e\u2061\u206f\ufff9\U0001bca0\U0001d173")
def test_nothing_hidden_is_left_and_escaping_again_changes_nothing(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(each) for each in shown} & _HIDDEN
    assert printable(shown) == shown
    shown.encode()


@given(_ANY, st.integers(20, 100))
def test_a_cut_text_is_no_longer_than_its_limit(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown == printable(text) or "…" in shown
    assert printable(shown, limit) == shown


def test_a_cut_text_shows_both_ends_and_says_how_much_is_missing() -> None:
    head, middle, tail = printable("A" * 10_000 + "Z" * 10_000, 100).split(" … ")
    assert set(head) == {"A"}
    assert set(tail) == {"Z"}
    assert middle == f"({20_000 - len(head) - len(tail)} characters left out)"


def test_a_huge_text_is_cut_before_it_is_escaped() -> None:
    assert len(printable("\x1b" * 50_000_000, 200)) <= 200


def test_an_escape_is_never_cut_in_two() -> None:
    for limit in range(40, 80):
        head = printable("\u202e" * 50, limit).partition(" …")[0].rstrip("…")
        assert len(head) % len(r"\u202e") == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::error::x", r"\x3a:error::x"),
        ("  ::warning file=a::x", r"  \x3a:warning file=a::x"),
        ("a ::error::x", "a ::error::x"),
        ("a\n::error::x", r"a\n::error::x"),
        ("a ##[error]x", r"a #\x23[error]x"),
        ("##vso[task.setvariable]x", r"#\x23vso[task.setvariable]x"),
        ("## heading", "## heading"),
        ("\u3000::error::x", r"\u3000::error::x"),
    ],
)
def test_a_line_is_no_command_to_the_runner_of_a_job(text: str, shown: str) -> None:
    assert printable_line(text) == shown


@given(_ANY)
def test_a_line_is_one_line_of_bounded_length(text: str) -> None:
    line = printable_line(text * 30)
    assert len(line.splitlines()) <= 1
    assert len(line) <= LINE_LIMIT + 30 * 3
    assert printable_line(str(line)) == line


def test_a_finished_line_stays_as_it_is() -> None:
    line = FinishedLine("::error title=a::b\x1b")
    assert printable_line(line) is line


@given(st.dictionaries(_ANY, _ANY, max_size=3))
def test_json_is_visible_ascii_and_means_the_same(document: dict[str, str]) -> None:
    text = json_text(document)
    assert text.isascii()
    assert printable(text, keep="\n") == text
    assert "##" not in text
    assert json.loads(text) == json.loads(json.dumps(document))


@given(st.dictionaries(_ANY, _ANY, max_size=3))
@example({"×": "\u202e\x9b\U000e0041\x7f##[error]"})
def test_readable_json_hides_nothing_and_means_the_same(document: dict[str, str]) -> None:
    text = json_text(document, ascii_only=False)
    assert printable(text, keep="\n") == text
    assert "##" not in text
    assert json.loads(text) == json.loads(json.dumps(document))
    assert ("×" in text) == any("×" in each for pair in document.items() for each in pair)


@pytest.mark.parametrize(
    "word",
    ["plain", "two words", "it's", "$HOME `id`", "\x1b[31m'\\", "é\x1bf", "\n\u202e\U000e0041a"],
)
def test_the_shell_reads_a_word_as_it_is(word: str) -> None:
    line = shell_command(["printf", "%s", word])
    assert printable(line) == line
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode() == word


def test_the_shell_reads_a_path_that_is_no_utf8() -> None:
    line = shell_command(["printf", "%s", b"a\xff\xfeb".decode(errors="surrogateescape")])
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert done.stdout == b"a\xff\xfeb"
