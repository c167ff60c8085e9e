"""Checks on a device: a decoder's prefill and cached steps, and the inputs of every run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.graph.spec.signature import CachedLayer, Signature
from lora_export.ondevice.judge.golden_checks import Reading, check_graph
from lora_export.ondevice.judge.golden_files import Golden, read_golden
from lora_export.verification.golden import golden_file
from lora_export.verification.inputs.random_inputs import make_cases
from tests.helpers.golden import write_golden
from tests.helpers.interfaces import reading
from tests.verification.test_greedy import VOCABULARY, Summing, whole

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=[False, True], ids=["all logits", "the last"])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Golden, Reading]:
    """Return golden outputs of a decoder with a cache, written and read."""
    text = reading("input_ids", "attention_mask", "position_ids").inputs
    signature = Signature((*text, *CachedLayer(0, 1, 1, 1).inputs(0, "float32")), ())
    cases = make_cases(
        {"vocab_size": VOCABULARY}, signature, seed=0, left_padding=True, shapes=((1, 8), (2, 24))
    )
    last = slice(-1, None) if request.param else slice(None)
    expected = [whole(case.feeds)[:, last].astype(np.float32) for case in cases]
    write_golden(tmp_path, "base", Golden(cases, expected, None))
    found = read_golden(tmp_path / golden_file("base"))
    return found, Reading(("logits",), per_token=True, choices=True, last=request.param)


class Returning:
    """A decoder that returns the logits that are asked for."""

    def __init__(self, *, last: bool, forget: bool) -> None:
        self.graph, self.last = Summing(forget=forget), last

    def run(self, feeds: Any) -> dict[str, np.ndarray]:
        found = self.graph.run(feeds)
        return {**found, "logits": found["logits"][:, -1:] if self.last else found["logits"]}


@pytest.mark.parametrize(("forget", "verdict"), [(False, "pass"), (True, "fail")])
def test_a_cache_that_is_read_wrongly_fails(golden: Any, forget: bool, verdict: str) -> None:
    outputs, how = golden
    graph = Returning(last=how.last, forget=forget)
    assert check_graph(graph, outputs, how, dtype="float32")[0] == verdict
    assert graph.graph.lengths == [6, 1, 1, 22, 1, 1]
