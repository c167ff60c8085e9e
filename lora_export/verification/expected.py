"""The outputs of the reference: what a graph is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from lora_export.ondevice.judge.golden_files import Case, valid_rows
from lora_export.ondevice.judge.metrics import relative_l2
from lora_export.verification.datasets.dataset import Dataset, predict
from lora_export.verification.datasets.questions import Answers, RecomputingModel
from lora_export.verification.greedy import Greedy, greedy_of_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.graph.spec.tasks import Task
    from lora_export.runtime.reference import Reference

__all__ = ["Expected", "rows_of", "run_reference"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """The reference's outputs and effect.

    Attributes:
        outputs: Its output for each input.
        effect: What the adapter changes, relative L2; None for the base.
        answers: Its answers to a data set; None without one.
        base_answers: Those of the model without the adapter's low-rank part.
        greedy: The tokens that it chose; None where there is no cache.
        hidden: The outputs of an encoder-decoder's encoder.
    """

    outputs: list[Array]
    effect: float | None
    answers: Answers | None
    base_answers: Answers | None
    greedy: Greedy | None
    hidden: list[Array]


def run_reference(
    reference: Reference,
    task: Task,
    cases: Sequence[Case],
    dataset: Dataset | None,
    *,
    has_adapter: bool,
    last: bool,
    prompts: tuple[Case, int] | None,
) -> Expected:
    """Run the reference on all inputs, with and without the adapter's low-rank part; close it.

    Args:
        reference: The reference.
        task: The export's task.
        cases: The inputs.
        dataset: Examples that it answers.
        has_adapter: Whether the adapter's effect is measured.
        last: Whether a decoder returns the logits of the last position only.
        prompts: Texts that it continues, and by how many tokens.
    """
    positions = slice(-1, None) if last else slice(None)
    try:
        outputs: list[Array] = [reference.run(case.feeds)[:, positions] for case in cases]
        hidden = [reference.encode(c.feeds) for c in cases] if task.encoder_decoder else []
        names = dataset.reading.signature.input_names if dataset is not None else ()
        asked = RecomputingModel(reference.run, names)
        answers = predict(dataset, asked) if dataset is not None else None
        effect = greedy = base_answers = None
        if prompts is not None:
            greedy = greedy_of_reference(reference.run, prompts[0], steps=prompts[1])
        if has_adapter:
            with reference.without_low_rank():
                plain = [reference.run(case.feeds)[:, positions] for case in cases]
                base_answers = predict(dataset, asked) if dataset is not None else None
            effect = relative_l2(rows_of(plain, cases, task), rows_of(outputs, cases, task))
    finally:
        reference.close()
    return Expected(outputs, effect, answers, base_answers, greedy, hidden)


def rows_of(outputs: Sequence[Array], cases: Sequence[Case], task: Task) -> list[Array]:
    """Return the rows ``[n, width]`` of each output that count."""
    return [
        valid_rows(output, case, per_token=task.per_token)
        for output, case in zip(outputs, cases, strict=True)
    ]
