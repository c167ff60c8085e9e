"""Modules that hold for every length, by the guards of their trace: small ones written by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from torch.nn import functional

from lora_export.core.errors import FixedLengthError
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import Choices, Input, Signature
from lora_export.graph.trace.lengths import fixed_axis, fixed_length, refuse_fixed_lengths
from lora_export.graph.trace.trace import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

POSITIONS = 96
EXAMPLE = {"batch": 2, "sequence": 7, "past_sequence": 5}
STATES = Input("states", "float32", ("batch", "sequence", 4))
CACHED = (STATES, Input("past", "float32", ("batch", "past_sequence", 4)))


class Module(torch.nn.Module):
    """A module that computes one function of its inputs."""

    def __init__(self, compute: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.compute = compute
        self.config = SimpleNamespace(max_position_embeddings=POSITIONS)
        self.register_buffer("table", torch.arange(float(POSITIONS)))

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.compute(self, **inputs)


def check(compute: Callable[..., torch.Tensor], inputs: tuple[Input, ...] = (STATES,)) -> None:
    """Trace a module with every axis dynamic, and check its guards."""
    dynamic = {each.name: dict.fromkeys(each.dynamic, torch.export.Dim.DYNAMIC) for each in inputs}
    signature, module = Signature(inputs, ()), Module(compute)

    def trace_at(sizes: Mapping[str, int]) -> torch.export.ExportedProgram:
        known = {**EXAMPLE, **sizes}
        example = {
            each.name: torch.ones([known.get(str(axis), 4) for axis in each.axes])
            for each in inputs
        }
        return torch.export.export(
            module, (), {"inputs": example}, strict=False, dynamic_shapes={"inputs": dynamic}
        )

    try:
        program = trace_at({})
    except Exception as error:
        axis = fixed_axis(error, signature)
        if axis is None:
            raise
        raise fixed_length("Module", f"its code fixes the size of {axis}") from error
    refuse_fixed_lengths(program, signature, module, trace_at)


def in_chunks(self: Module, states: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(states, (0, 0, 0, -states.shape[1] % 64))
    state = torch.zeros_like(states[:, 0])
    outputs = []
    for index in range(padded.shape[1] // 64):
        state = state + padded[:, 64 * index : 64 * index + 64].sum(1)
        outputs.append(state)
    return torch.stack(outputs)


def branch_on_length(self: Module, states: torch.Tensor) -> torch.Tensor:
    return states * 2 if states.shape[1] <= 2000 else states


def equal_past(self: Module, states: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    return states[:, :5] + past if past.shape[1] == 5 else states


def small_past(self: Module, states: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    together = torch.cat([past, states], dim=1)
    return together if together.shape[1] < 200 else states


def one_chunk_more(self: Module, states: torch.Tensor) -> torch.Tensor:
    return torch.stack([chunk.sum(1) for chunk in states.split(16, dim=1)])


@pytest.mark.parametrize(
    ("compute", "size"),
    [(in_chunks, 65), (branch_on_length, 2047), (one_chunk_more, 17)],
)
def test_code_that_takes_another_path_at_some_length_is_refused(compute, size: int) -> None:
    with pytest.raises(FixedLengthError, match=rf"with sequence {size} its code") as caught:
        check(compute)
    assert "--graph" in str(caught.value.hint)


def test_message_says_where_the_code_looks_at_the_size() -> None:
    with pytest.raises(FixedLengthError, match=r"test_lengths\.py, line \d+: 'for index in range"):
        check(in_chunks)


@pytest.mark.parametrize("compute", [equal_past, small_past])
def test_a_past_of_one_length_only_is_refused(compute) -> None:
    with pytest.raises(FixedLengthError, match=r"\b(past_)?sequence\b"):
        check(compute, CACHED)


def test_size_that_becomes_a_number_is_named() -> None:
    def counted(self: Module, states: torch.Tensor) -> torch.Tensor:
        return states * int(states.shape[1])

    with pytest.raises(FixedLengthError, match="fixes the size of sequence"):
        check(counted)


def test_code_without_another_path_passes() -> None:
    def attend(self: Module, states: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        keys = torch.cat([past, states], dim=1)
        scores = states @ keys.transpose(1, 2)
        queries = torch.arange(states.shape[1]) + past.shape[1]
        allowed = torch.arange(keys.shape[1])[None] <= queries[:, None]
        return scores.masked_fill(~allowed, -1e9).softmax(-1) @ keys

    def padded(self: Module, states: torch.Tensor) -> torch.Tensor:
        whole = functional.pad(states, (0, 0, 0, -states.shape[1] % 16))
        chunks = whole.reshape(states.shape[0], -1, 16, 4).cumsum(2)
        return chunks.reshape(states.shape[0], -1, 4)[:, : states.shape[1]]

    def first_rows(self: Module, states: torch.Tensor) -> torch.Tensor:
        return states[:, :50] * 2  # ONNX's Slice ends where the input does, as torch's

    check(attend, CACHED)
    check(padded)
    check(first_rows)


def test_shifted_neighbours_pass() -> None:
    """Of two tokens one is left over: torch then asks about a size of 1, which decides no path."""

    def trigrams(self: Module, states: torch.Tensor) -> torch.Tensor:
        before = functional.pad(states[:, 1:], (0, 0, 0, 1))
        after = functional.pad(states[:, :-1], (0, 0, 1, 0))
        return torch.cat([before, states, after], dim=2)

    check(trigrams)


def test_end_of_the_position_table_is_no_fault() -> None:
    def added(self: Module, states: torch.Tensor) -> torch.Tensor:
        return states + self.table[: states.shape[1], None]

    def added_behind_the_past(
        self: Module, states: torch.Tensor, past: torch.Tensor
    ) -> torch.Tensor:
        start = past.shape[1]
        return states + self.table[start : start + states.shape[1], None]

    check(added)
    check(added_behind_the_past, CACHED)


LINEAR_ATTENTION = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "block_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "task", "reason"),
    [
        (transformers.MiniMaxConfig(**LINEAR_ATTENTION), "text-generation",
         r"with sequence 17 .*modeling_minimax\.py, line \d+: 'for i in range\(num_blocks\)"),
        (transformers.RwkvConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2,
                                 attention_hidden_size=16), "text-generation",
         "fixes the size of sequence"),
        (transformers.BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1,
                                 num_attention_heads=2, intermediate_size=16,
                                 chunk_size_feed_forward=1), "text-classification",
         "fixes the size of sequence"),
    ],
    ids=["linear attention", "recurrence", "chunked feed-forward"],
)  # fmt: skip
def test_model_that_loops_over_positions_is_refused(config, task: str, reason: str) -> None:
    with pytest.raises(FixedLengthError, match=reason):
        trace(config.to_dict(), tasks.by_name(task), "float32", 20, choices=Choices(cache=False))
