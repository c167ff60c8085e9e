"""A few hundred cases of the differential fuzz, and that it notices what is broken."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lora_export.adapters import canonical
from lora_export.adapters.formats import peft_scale, peft_tensors
from tools.merge_fuzz.adapters import AdapterSpec
from tools.merge_fuzz.bases import BaseSpec, make_base
from tools.merge_fuzz.cases import Case
from tools.merge_fuzz.combining import Combine
from tools.merge_fuzz.graphs import judge_graph
from tools.merge_fuzz.judge import judge_merge, train_case
from tools.merge_fuzz.run import run_parallel
from tools.merge_fuzz.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tools.merge_fuzz.bases import Base
    from tools.merge_fuzz.judge import Outcome

SEED = int(os.environ.get("LORA_EXPORT_FUZZ_SEED", "17"))
CHUNK = 30


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
def test_no_case_differs_from_unmerged_peft(chunk: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    summary = Summary()
    try:
        for result in run_parallel(SEED, range(chunk * CHUNK, (chunk + 1) * CHUNK), 1, graphs=0.02):
            summary.add(result)
    finally:
        torch.set_num_threads(threads)
    assert not summary.faults, summary.text()
    assert summary.kinds["equal"] > CHUNK / 3, summary.text(verbose=True)


# ---------------------------------------------------------------------------- what it notices


LLAMA = "AutoModelForCausalLM"
PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(BaseSpec("Llama", LLAMA, LLAMA, tied=True), tmp_path_factory.mktemp("base"))


def judged(base: Base, folder: Path, settings: dict[str, Any], **more: Any) -> Outcome:
    case = Case(base.spec, AdapterSpec({**PLAIN, **settings}), **more)
    trained = train_case(case, base, folder / "adapter", seed=1)
    return judge_merge(case, base, trained, folder)


SOUND: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "rslora": ({"use_rslora": True}, {}),
    "dora": ({"use_dora": True}, {}),
    "rows": ({"trainable_token_indices": {"embed_tokens": [5, 9]}}, {}),
    "scaled": ({}, {"scale": -0.5}),
    "combined": ({}, {"combine": Combine("svd", (1.0, 0.5), rank=3)}),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_right_is_called_equal(kind: str, base: Base, tmp_path: Path) -> None:
    settings, more = SOUND[kind]
    assert judged(base, tmp_path, settings, **more).kind == "equal"


def _break_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = peft_scale.scale_of

    def broken(module: str, rank: int, config: Any, source: str) -> float:
        return whole(module, rank, {**config, "use_rslora": False}, source)

    monkeypatch.setattr(peft_tensors, "scale_of", broken)


def _lose_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical.Adapter, "items", property(
        lambda self: (*self.low_rank, *self.saved, *self.added)))  # fmt: skip


def _lose_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical.Adapter, "items", property(
        lambda self: (*self.low_rank[1:], *self.saved, *self.added, *self.rows)))  # fmt: skip


def _lose_magnitudes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canonical.Adapter, "items", property(
        lambda self: tuple(replace(each, magnitude=None) for each in self.low_rank)))  # fmt: skip


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], dict[str, Any]]] = {
    "rslora's scale": (_break_scale, {"use_rslora": True}),
    "rows": (_lose_rows, {"trainable_token_indices": {"embed_tokens": [5, 9]}}),
    "a module": (_lose_a_module, {}),
    "magnitudes": (_lose_magnitudes, {"use_dora": True}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_noticed(
    what: str, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, settings = BROKEN[what]
    spoil(monkeypatch)
    assert judged(base, tmp_path, settings).kind == "DIFFERENT"


BERT = BaseSpec("BERT", "AutoModel", "AutoModelForSequenceClassification")
SAVED_WHOLE = "bert.encoder.layer.0.attention.self.key"


@pytest.mark.parametrize("wrapper", [None, "module inside"])
def test_a_head_that_the_base_lacks_has_its_name_whatever_is_around_it(
    wrapper: str | None, tmp_path: Path
) -> None:
    base = make_base(BERT, tmp_path / "base")
    settings = {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    case = Case(BERT, AdapterSpec(settings), wrapper=wrapper)
    trained = train_case(case, base, tmp_path / "adapter", seed=1)
    outcome = judge_merge(case, base, trained, tmp_path)
    assert outcome.kind == "equal", outcome.message


def test_a_graph_takes_a_module_that_the_adapter_saves_and_the_base_has(tmp_path: Path) -> None:
    spec = BaseSpec("BERT", *["AutoModelForSequenceClassification"] * 2)
    base = make_base(spec, tmp_path / "base")
    settings = {"r": 2, "target_modules": ["query"], "modules_to_save": [SAVED_WHOLE]}
    case = Case(spec, AdapterSpec({**settings, "task_type": "SEQ_CLS"}), mode="swappable")
    trained = train_case(case, base, tmp_path / "adapter", seed=1)
    assert judge_graph(case, base, trained, tmp_path, "swappable").kind == "equal"
