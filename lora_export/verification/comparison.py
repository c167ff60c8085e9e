"""A graph and its reference, and the inputs that both are run on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lora_export.core.memory import available_bytes
from lora_export.runtime.reference import Reference, estimate_bytes
from lora_export.verification.expected import Expected, run_reference
from lora_export.verification.graph_model import open_model
from lora_export.verification.greedy import prompts_for
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import CASES, make_cases
from lora_export.weights.positions import long_rope_threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.graph.spec.tasks import Task
    from lora_export.ondevice.judge.golden_files import Case
    from lora_export.runtime.ort import OrtRunner
    from lora_export.verification.datasets.dataset import Dataset
    from lora_export.verification.graph_model import GraphModel, PairModel
    from lora_export.verification.inputs.feeding import Feeding
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["Comparison", "GraphChoice", "prepare"]

_QUANTIZED_OUTPUTS: Final = 2
"""Of a quantized graph outputs of several models are kept: twice as many as of another."""
_FURTHER: Final = ((8, 16), (8, 32), (8, 24))
"""Further texts for a quantized graph that makes one row of each."""


@dataclass(frozen=True)
class GraphChoice:
    """A graph of an export, and the model that it should be.

    Attributes:
        export_dir: The export directory.
        manifest: Its manifest.
        name: ``base``, or the adapter's name.
        record: The graph.
        task: The export's task.
        checkpoint: The base.
        adapter: The adapter of this graph; None for the base.
        labels_count: The width of the head.
        vocab_size: The number of tokens, where the adapter brings another than the base's.
        open_runner: Opens the graph, with the adapter where it shares one; exact or not, see
            `OrtRunner`.
        open_base: Opens the base's own graph.
    """

    export_dir: Path
    manifest: Manifest = field(repr=False)
    name: str
    record: GraphRecord = field(repr=False)
    task: Task = field(repr=False)
    checkpoint: Checkpoint = field(repr=False)
    adapter: Adapter | None = field(repr=False)
    labels_count: int | None
    vocab_size: int | None
    open_runner: Callable[[bool], OrtRunner] = field(repr=False)
    open_base: Callable[[bool], OrtRunner] = field(repr=False)

    @property
    def last(self) -> bool:
        """Whether a decoder returns the logits of the last position only."""
        return self.manifest.base.logits == "last"

    @property
    def dtype(self) -> str:
        """The dtype of the graph's weights, or that it computes with quantized ones in."""
        return self.manifest.base.dtype


@dataclass(frozen=True)
class Comparison:
    """A graph that can be compared.

    Attributes:
        choice: The graph.
        outputs: The graph's names for the task's outputs.
        cases: The inputs.
        switch: See `lora_export.ondevice.judge.decoding.run_in_pieces`.
        prompts: Texts to continue, and by how many tokens; None without a cache.
        seed: Seeds the inputs.
    """

    choice: GraphChoice
    outputs: tuple[str, ...]
    cases: Sequence[Case] = field(repr=False)
    switch: int | None
    prompts: tuple[Case, int] | None = field(repr=False)
    seed: int

    def open_reference(self) -> Reference:
        """Return the unmerged adapter in torch, or the base where there is none."""
        of = self.choice
        return Reference(
            of.checkpoint,
            of.task,
            adapter=of.adapter,
            labels_count=of.labels_count,
            vocab_size=of.vocab_size,
        )

    def run_reference(
        self, reference: Reference, dataset: Dataset | None, *, has_adapter: bool
    ) -> Expected:
        """Return what the reference gives for the inputs; close it."""
        return run_reference(
            reference, self.choice.task, self.cases, dataset,
            has_adapter=has_adapter, last=self.choice.last, prompts=self.prompts,
        )  # fmt: skip

    def open_graph(self, *, exact: bool) -> GraphModel | PairModel:
        """Open the graph; `exact` is for quantized weights, see `OrtRunner`."""
        of = self.choice
        return open_model(
            of.export_dir, of.record, of.task, lambda: of.open_runner(exact),
            outputs=self.outputs, last=of.last, switch=self.switch, exact=exact,
        )  # fmt: skip


def prepare(choice: GraphChoice, *, seed: int) -> Comparison | str:
    """Return the inputs of a graph and its reference, or why they cannot be compared.

    A quantized graph gets more of them where a text is one row: what it loses is estimated.

    Args:
        choice: The graph.
        seed: Seeds the inputs.
    """
    quantized = choice.manifest.base.quantization is not None
    shapes = (*CASES, *_FURTHER) if quantized and not choice.task.per_token else CASES
    if reason := _too_large(choice.checkpoint, shapes, _QUANTIZED_OUTPUTS if quantized else 1):
        return reason
    feeding = feeding_of(choice.export_dir, choice.record)
    if reason := feeding.reason or feeding.cache_reason:
        return reason
    cases = make_cases(
        choice.checkpoint.config,
        feeding.signature,
        seed=seed,
        left_padding=choice.task.causal,
        shapes=feeding.shapes(shapes),
        vocab_size=choice.vocab_size,
    )
    return Comparison(
        choice,
        feeding.outputs_for(choice.task.outputs),
        cases,
        long_rope_threshold(choice.checkpoint.config),
        _prompts(choice, feeding, seed) if choice.manifest.base.cache else None,
        seed,
    )


def _prompts(choice: GraphChoice, feeding: Feeding, seed: int) -> tuple[Case, int]:
    return prompts_for(
        feeding,
        choice.checkpoint.config,
        seed=seed,
        left_padding=choice.task.causal,
        vocab_size=choice.vocab_size,
    )


def _too_large(
    checkpoint: Checkpoint, shapes: Sequence[tuple[int, int]], outputs: int
) -> str | None:
    free = available_bytes()
    tokens = sum(batch * length for batch, length in shapes)
    needed = estimate_bytes(checkpoint, tokens=tokens * outputs)
    if free is None or needed <= free:
        return None
    return (
        f"the reference needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
        "free; verify on a larger machine with: lora-export verify OUT --base BASE"
    )
