"""``layout --for genai`` in onnxruntime-genai: the tokens of PEFT in torch, for each adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands.layout import layout
from tests.helpers.builds import build
from tests.helpers.chat_models import (
    greedy,
    greedy_swapped,
    loaded_tokenizer,
    logit_losses,
    save_chat_adapter,
    save_chat_base,
    save_grown_adapter,
)
from tests.helpers.dequantized import dequantized

if TYPE_CHECKING:
    from pathlib import Path

TASK = "text-generation"
COUNT = 10
PROMPTS = ((10, 20, 30, 40, 50), (7, 8, 9), (100, 101, 102, 103))
CHAT = [{"role": "system", "content": "be small"}, {"role": "user", "content": "the quick fox?"}]
WINDOWED = ("Mistral", "Gemma 2", "Gemma 3")
"""Families whose windows of five tokens count what fills a batch; see docs/genai.md."""


@dataclass(frozen=True)
class Made:
    """A base and two adapters of a family."""

    base: Path
    adapters: dict[str, Path]


def make(family: str, root: Path, **changes: Any) -> Made:
    base = save_chat_base(family, root / "base", **changes)
    return Made(
        base,
        {
            "a": save_chat_adapter(base, root / "a", seed=1, r=4),
            "b": save_chat_adapter(base, root / "b", seed=2, r=3, use_rslora=True),
        },
    )


def steps_of(adapter: str | None = None, *, batch: bool = True) -> list[dict[str, Any]]:
    """Return a step for each prompt alone, and for all of them as one batch."""
    alone = [{"ids": [row], "count": COUNT, "adapter": adapter} for row in PROMPTS]
    return [*alone, *([{"ids": PROMPTS, "count": COUNT, "adapter": adapter}] if batch else [])]


def tokens_of(result: dict[str, Any]) -> list[list[int]]:
    assert "error" not in result, result
    return [row for step in result["steps"] for row in step["tokens"]]


def expected(made: Made, name: str | None, *, batch: bool = True, **settings: Any) -> Any:
    """Return what PEFT writes, for the steps of `steps_of`."""
    adapter = made.adapters[name] if name is not None else None
    alone = [greedy(made.base, adapter, [row], COUNT, **settings)[0] for row in PROMPTS]
    together = greedy(made.base, adapter, PROMPTS, COUNT, **settings) if batch else []
    return [*alone, *together]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Made:
    return make("Llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def swappable(llama, tmp_path_factory):
    return build(llama.base, llama.adapters, tmp_path_factory.mktemp("swap") / "out",
                 mode="swappable", task=TASK).output  # fmt: skip


FAMILIES = [
    *("GPT-2", "Llama"),
    *(pytest.param(each, marks=pytest.mark.slow)
      for each in ("Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma 2", "Gemma 3", "Phi-3", "Phi",
                   "SmolLM3")),
]  # fmt: skip


@pytest.mark.parametrize("family", ["Llama", pytest.param("Gemma 3", marks=pytest.mark.slow),
                                    pytest.param("GPT-2", marks=pytest.mark.slow)])  # fmt: skip
def test_graphs_of_onnx_runtimes_form(family, run_client, tmp_path):
    """One buffer is past and present; rows of a batch, padded by the runtime, are as alone."""
    layers = {"n_layer" if family == "GPT-2" else "num_hidden_layers": 2}
    made = make(family, tmp_path, **layers)
    for mode in ("merged", "swappable"):
        export = build(made.base, made.adapters, tmp_path / mode, mode=mode, task=TASK,
                       graph_form="ort").output  # fmt: skip
        layout(export, "genai", tmp_path / f"genai-{mode}")
    merged, packs = tmp_path / "genai-merged", tmp_path / "genai-swappable"
    batch = family not in WINDOWED
    jobs = [
        {"folder": str(merged / "a"), "steps": steps_of(batch=batch)},
        {"folder": str(packs), "steps": [s for n in ("b", None, "a") for s in
                                         steps_of(n, batch=batch)]},
    ]  # fmt: skip
    first, swapped = map(tokens_of, run_client("genai", "genai_client.py", jobs))
    wanted = {name: expected(made, name, batch=batch) for name in ("a", "b", None)}
    assert first == wanted["a"]
    assert swapped == [*wanted["b"], *wanted[None], *wanted["a"]]


OTHERS = (
    *("Cohere2", "Falcon", "Falcon (ALiBi)", "GLM-4", "GPT-BigCode", "GPT-J", "GPT-Neo"),
    *("GPT-NeoX", "GPT-OSS", "Granite", "Mixtral", "MPT", "OLMo2", "OLMoE", "OPT", "Qwen3-MoE"),
    *("StableLM", "Starcoder2"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_peft(family, run_client, tmp_path):
    layers = {"n_layer" if family == "GPT-2" else "num_hidden_layers": 2}
    made, batch = make(family, tmp_path, **layers), family not in WINDOWED
    for mode in ("merged", "swappable"):
        export = build(made.base, made.adapters, tmp_path / mode, mode=mode, task=TASK).output
        layout(export, "genai", tmp_path / f"genai-{mode}")
    merged, packs = tmp_path / "genai-merged", tmp_path / "genai-swappable"
    jobs = [
        *({"folder": str(merged / each), "steps": steps_of(batch=batch)} for each in ("a", "b")),
        {"folder": str(packs), "steps": [s for n in ("a", None, "b", "a") for s in
                                         steps_of(n, batch=batch)]},
    ]  # fmt: skip
    first, second, swapped = map(tokens_of, run_client("genai", "genai_client.py", jobs))
    wanted = {name: expected(made, name, batch=batch) for name in ("a", "b", None)}
    assert wanted["a"] != wanted["b"] != wanted[None]
    assert first == wanted["a"]
    assert second == wanted["b"]
    assert swapped == [*wanted["a"], *wanted[None], *wanted["b"], *wanted["a"]]


# PEFT gives the ranks of experts patterns for other names than transformers' fused ones, and warns.
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_types_without_a_name_there_run_as_any_decoder(family, run_client, tmp_path):
    made = make(family, tmp_path)
    adapters = {"a": made.adapters["a"]}
    export = build(made.base, adapters, tmp_path / "out", task=TASK).output
    layout(export, "genai", tmp_path / "g", adapter="a")
    job = {"folder": str(tmp_path / "g"), "steps": steps_of(batch=False)}
    (result,) = run_client("genai", "genai_client.py", [job])
    assert tokens_of(result) == expected(made, "a", batch=False)


def test_adapters_are_swapped_while_a_text_is_written(llama, swappable, run_client, tmp_path):
    layout(swappable, "genai", tmp_path / "g")
    step = {"ids": [PROMPTS[0]], "count": 9, "adapter": "a", "swaps": [["b", 3], ["a", 6]]}
    job = {"folder": str(tmp_path / "g"), "steps": [{**step, "stop": -1}]}
    (result,) = run_client("genai", "genai_client.py", [job])
    plan = (("a", 3), ("b", 3), ("a", 3))
    assert tokens_of(result) == [greedy_swapped(llama.base, llama.adapters, PROMPTS[0], plan)]


def test_a_fixed_adapter_needs_no_pack(llama, swappable, run_client, tmp_path):
    layout(swappable, "genai", tmp_path / "b", adapter="b")
    layout(swappable, "genai", tmp_path / "base", adapter="base")
    jobs = [{"folder": str(tmp_path / each), "steps": steps_of()} for each in ("b", "base")]
    adapter, base = map(tokens_of, run_client("genai", "genai_client.py", jobs))
    assert adapter == expected(llama, "b")
    assert base == expected(llama, None)


def test_a_chat_is_streamed_with_its_template(llama, swappable, run_client, tmp_path):
    layout(swappable, "genai", tmp_path / "g")
    tokenizer = loaded_tokenizer(llama.base)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    spoken = tokenizer("the quick brown fox jumps.")["input_ids"]
    steps = [{"chat": CHAT, "count": 20, "adapter": n, "spoken": spoken} for n in ("a", "b")]
    (result,) = run_client("genai", "genai_client.py", [{"folder": str(tmp_path / "g"),
                                                         "steps": steps}])  # fmt: skip
    for step, name in zip(result["steps"], ("a", "b"), strict=True):
        assert step["ids"] == [ids]
        tokens = greedy(llama.base, llama.adapters[name], [ids], 20)[0]
        assert step["tokens"] == [tokens]
        assert step["text"].startswith("the quick brown fox jumps.")
        assert len(step["text"]) > len("the quick brown fox jumps.")  # random bytes are not letters


def test_an_adapter_brings_tokens_template_and_head(llama, run_client, tmp_path):
    """As training for chat leaves it: two new tokens, one of which ends a turn."""
    tokenizer = save_grown_adapter(llama.base, tmp_path / "grown")
    export = build(llama.base, {"a": tmp_path / "grown"}, tmp_path / "out", task=TASK).output
    layout(export, "genai", tmp_path / "g", adapter="a")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    steps = [{"chat": CHAT, "count": 20, "stop": end}]
    (result,) = run_client("genai", "genai_client.py", [{"folder": str(tmp_path / "g"),
                                                         "steps": steps}])  # fmt: skip
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert result["steps"][0]["ids"] == [ids]
    tokens = greedy(llama.base, tmp_path / "grown", [ids], 20, stop=end, rows=len(tokenizer))[0]
    assert tokens_of(result) == [tokens]


def test_a_batch_of_texts_is_padded_by_the_runtime(llama, swappable, run_client, tmp_path):
    layout(swappable, "genai", tmp_path / "g")
    texts = ["the quick brown fox", "a small model", "dog"]
    tokenizer = loaded_tokenizer(llama.base)
    rows = [tokenizer(each)["input_ids"] for each in texts]
    job = {"folder": str(tmp_path / "g"), "steps": [{"texts": texts, "count": COUNT,
                                                     "adapter": "b"}]}  # fmt: skip
    (result,) = run_client("genai", "genai_client.py", [job])
    longest = max(map(len, rows))
    assert result["steps"][0]["ids"] == [[*row, *[0] * (longest - len(row))] for row in rows]
    assert tokens_of(result) == greedy(llama.base, llama.adapters["b"], rows, COUNT)


@pytest.mark.parametrize("mode", ["merged", "swappable"])
def test_float16(llama, run_client, tmp_path, mode):
    half = make("Llama", tmp_path / "half", num_hidden_layers=2, dtype="float16")
    export = build(half.base, half.adapters, tmp_path / "out", mode=mode, task=TASK).output
    layout(export, "genai", tmp_path / "g", adapter="a" if mode == "merged" else None)
    job = {"folder": str(tmp_path / "g"), "steps": steps_of("a" if mode == "swappable" else None)}
    (result,) = run_client("genai", "genai_client.py", [job])
    rows = [(*PROMPTS, *PROMPTS), tokens_of(result)]
    losses = [loss for prompt, tokens in zip(*rows, strict=True)
              for loss in logit_losses(half.base, half.adapters["a"], prompt, tokens)]  # fmt: skip
    assert len(losses) > COUNT
    assert max(losses) < 0.02  # of a logit: a near tie may fall the other way
    assert np.mean(np.array(losses) == 0) > 0.9


@pytest.mark.parametrize("form", ["portable", "ort"])
@pytest.mark.parametrize("mode", ["merged", "swappable"])
def test_int4(llama, run_client, tmp_path, mode, form):
    """The reference is torch with the values that the stored integers stand for."""
    export = build(
        llama.base, llama.adapters, tmp_path / "out",
        mode=mode, task=TASK, graph_form=form, quantize={"weights": "int4", "block_size": 16},
    ).output  # fmt: skip
    layout(export, "genai", tmp_path / "g", adapter="a" if mode == "merged" else None)
    exact = {"session.qdq_matmulnbits_accuracy_level": "0"}  # activations stay floats
    job = {
        "folder": str(tmp_path / "g"),
        "overlay": {"model": {"decoder": {"session_options": exact}}},
        "steps": steps_of("a" if mode == "swappable" else None),
    }
    (result,) = run_client("genai", "genai_client.py", [job])
    name = None if mode == "merged" else "a"
    values = dequantized(export, "a" if mode == "merged" else "base")
    assert tokens_of(result) == expected(llama, name, values=values)
