"""Every module that reads a file is fuzzed, or says why not."""

from __future__ import annotations

from tools.reader_fuzz.coverage import NOT_FUZZED, reached_modules, reading_modules


def test_every_reader_is_fuzzed_or_says_why_not() -> None:
    reading, reached = reading_modules(), reached_modules()
    assert len(reading) > 40
    assert sorted(reading - reached - set(NOT_FUZZED)) == []
    assert sorted(set(NOT_FUZZED) & reached) == []
    assert sorted(set(NOT_FUZZED) - reading) == []
