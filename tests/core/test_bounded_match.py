"""Expressions of any cost are matched as Python matches them, and never for long."""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING

import pytest

from lora_export.adapters.formats.peft_scale import rank_by_config
from lora_export.adapters.targeting import target_rule
from lora_export.core import bounded_match
from lora_export.core.bounded_match import matches, slow_match
from lora_export.core.errors import AdapterError
from lora_export.core.patterns import PatternError
from tests.core.test_patterns import EXPONENTIAL

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [
    "q_proj",
    "model.layers.0.self_attn.q_proj",
    "bert.encoder.layer.11.attention.self.QUERY",
    "a" * 600,
    "",
]
COSTLY = [
    "(?i).*query",
    r"(?:.*\.)?q_proj",
    r"(layers\.\d+\.)+self_attn.*|model\.(layers\.\d+\.)+self_attn\.(?:q|k)_proj",
    r"(?!.*visual).*\.q_proj",
    r".*?(?:layers|blocks).*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?",
]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a second be all that matching may take."""
    monkeypatch.setattr(bounded_match, "LIMIT_S", 1.0)
    matcher = bounded_match._Matcher()
    monkeypatch.setattr(bounded_match, "_MATCHER", matcher)
    slow_match.cache_clear()
    yield
    matcher.end()


@pytest.mark.parametrize("pattern", COSTLY)
def test_an_expression_of_unknown_cost_means_what_it_means_to_python(pattern: str) -> None:
    for name in NAMES:
        assert matches(pattern, name) == (re.fullmatch(pattern, name) is not None), name


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("pattern", EXPONENTIAL)
def test_no_expression_takes_long(pattern: str) -> None:
    started = time.monotonic()
    config = {"r": 8, "rank_pattern": {pattern: 4}}
    with contextlib.suppress(AdapterError):  # else it is matched soon
        for name in ("a" * 40 + "!", "ab" * 40 + "!", "x" + "a" * 200 + "y"):
            assert rank_by_config(name, config) in {4, 8}
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("hurried")
def test_a_target_that_takes_forever_is_refused_by_name() -> None:
    targets = target_rule({"target_modules": "(a+)+b"}, "here")
    assert targets is not None
    with pytest.raises(AdapterError, match=r"target_modules of adapter 'here' is '\(a\+\)\+b'"):
        targets("a" * 60)


def test_no_expression_is_said_to_be_none() -> None:
    with pytest.raises(PatternError, match="global flags not at the start"):
        matches(r"(.*\.)?((?i)QUERY)$", "query", core="(?i)QUERY")


@pytest.mark.usefixtures("hurried")
def test_the_process_is_started_again_after_it_ended() -> None:
    assert slow_match("(?:a)?b", "ab")
    process = bounded_match._MATCHER._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(PatternError, match="cannot be matched"):
        slow_match("(?:a)?b", "b")
    assert slow_match("(?:a)?b", "aab") is False
