"""Task accuracy on a data set: by the graph, by the reference, by the base, on the same tokens.

JSONL  →  examples (`kinds/`: read by the task)
       →  answers of each model, on the same inputs
       →  the metric of each, the difference of graph and reference with its interval,
          every example on which the two differ
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import UsageError
from lora_export.core.reports.parity_report import DatasetRow, DifferingExample, McNemarRow
from lora_export.ondevice.judge.near_ties import is_near_tie
from lora_export.runtime.tokens import open_tokenizer, read_settings
from lora_export.verification.datasets.class_names import HOW_TO_NAME, are_numbers
from lora_export.verification.datasets.kind import Reading
from lora_export.verification.datasets.labelled import CLASSES, NUMBERS, TAGS
from lora_export.verification.datasets.language import TEXTS, WRITTEN
from lora_export.verification.datasets.lines import read_lines
from lora_export.verification.datasets.paired import (
    CONFIDENCE,
    bootstrap_difference,
    judge_pair,
    mcnemar,
)
from lora_export.verification.datasets.spans import SPANS
from lora_export.verification.datasets.text_scores import require_library, require_words
from lora_export.verification.inputs.feeding import fixed_axes
from lora_export.verification.inputs.random_inputs import longest_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from lora_export.graph.spec.signature import Signature
    from lora_export.ondevice.judge.tolerances import Verdict
    from lora_export.verification.datasets.kind import Examples, Kind, Metric
    from lora_export.verification.datasets.questions import Answers, Model

__all__ = [
    "Dataset",
    "choose_metric",
    "load_dataset",
    "predict",
    "require_examples",
    "require_metric",
    "score",
]

_SHOWN: Final = 20

_KINDS: Final[dict[str, tuple[Kind, ...]]] = {
    "text-classification": (CLASSES, NUMBERS),
    "token-classification": (TAGS,),
    "question-answering": (SPANS,),
    "text-generation": (TEXTS, WRITTEN),
    "text2text-generation": (WRITTEN,),
}
"""The kinds of data sets of a task; the first metric of the first is the default."""


@dataclass(frozen=True)
class Dataset:
    """Examples of one kind, and how answers are scored.

    Attributes:
        kind: How they are asked.
        metric: The name of the metric.
        reading: What they were read with.
        examples: The examples.
    """

    kind: Kind
    metric: str
    reading: Reading
    examples: Examples


def choose_metric(task: str, metric: str | None, *, width: int | None = None) -> tuple[Kind, str]:
    """Return the kind of data set that a metric is computed on, and the metric.

    Args:
        task: The export's task.
        metric: Its name; None for the default of the task.
        width: The number of labels of the head; 1 is a regression.

    Raises:
        UsageError: The task has no data sets, or not this metric.
        MissingRuntimeError: What computes it is not installed.
    """
    kinds = _kinds(task)
    if CLASSES in kinds:
        kinds = (NUMBERS,) if width == 1 else (CLASSES,)
    known = {name: kind for kind in kinds for name in kind.metrics}
    chosen = metric or next(iter(known))
    if chosen not in known:
        what = f"{task} with one output" if kinds == (NUMBERS,) else task
        raise _no_metric(chosen, what, known)
    require_library(chosen)
    return known[chosen], chosen


def require_metric(task: str, metric: str | None) -> None:
    """Require that a task has a metric, and what computes it, before the work begins.

    Raises:
        UsageError: The task has no data sets, or not this metric.
        MissingRuntimeError: What computes it is not installed.
    """
    known = [name for kind in _kinds(task) for name in kind.metrics]
    chosen = metric or known[0]
    if chosen not in known:
        raise _no_metric(chosen, task, known)
    require_library(chosen)


def _kinds(task: str) -> tuple[Kind, ...]:
    kinds = _KINDS.get(task, ())
    if not kinds:
        msg = f"--dataset (verify.dataset) does not apply to the task {task}"
        raise UsageError(msg, hint=f"Leave it out; it is for {', '.join(_KINDS)}.")
    return kinds


def _no_metric(metric: str, what: str, known: Iterable[str]) -> UsageError:
    msg = f"{metric!r} is not a metric of {what}"
    return UsageError(msg, hint=f"Choose with --metric (verify.metric): {', '.join(known)}.")


def require_examples(path: Path) -> None:
    """Refuse a file that is missing, damaged or empty before any work is done.

    Raises:
        InputError: It is.
    """
    read_lines(path, "an object")


def load_dataset(
    path: Path,
    *,
    task: str,
    metric: str | None,
    companions: Mapping[str, Path],
    labels: Sequence[str],
    signature: Signature,
    config: Mapping[str, Any],
    width: int | None = None,
    left_padding: bool = False,
    room: int | None = None,
    max_new_tokens: int = 64,
) -> Dataset:
    """Read a JSONL file and tokenize it.

    Args:
        path: The file.
        task: The export's task.
        metric: The metric; None for the default of the task.
        companions: ``tokenizer.json`` and the configs, by name.
        labels: The names of the labels.
        signature: The inputs of the graph.
        config: The model's config: its padding token and its positions.
        width: The number of labels of the head.
        left_padding: Whether padding comes first.
        room: The positions of a static cache.
        max_new_tokens: The most tokens of a text that is written.

    Raises:
        InputError: The file is missing or damaged, or an example is not of its kind.
        MissingRuntimeError: ``tokenizers``, or what computes the metric, is not installed.
        UsageError: The names of the labels are not known, or the metric is not the task's.
    """
    kind, name = choose_metric(task, metric, width=width)
    if kind is TAGS and name == "f1" and are_numbers(labels):
        msg = "f1 counts entities by the names of the tags, which are not known"
        raise UsageError(msg, hint=f"{HOW_TO_NAME} Or choose --metric accuracy.")
    rows = read_lines(path, kind.fields)
    tokenizer = open_tokenizer(companions)
    fixed_rows, fixed_tokens, _ = fixed_axes(signature)
    longest = min(each for each in (longest_text(config), room, fixed_tokens) if each)
    if tokenizer.longest is None or tokenizer.longest > longest:
        tokenizer.cut_to(longest)
    padding = config.get("pad_token_id")
    reading = Reading(
        path, tokenizer, labels, signature,
        padding=padding if isinstance(padding, int) else tokenizer.pad_id,
        longest=longest, left=left_padding,
        settings=read_settings(companions), max_new_tokens=max_new_tokens,
        rows=fixed_rows, tokens=fixed_tokens,
    )  # fmt: skip
    examples = kind.read(rows, reading)
    if name == "rouge":
        require_words(examples.expected, str(path))
    return Dataset(kind, name, reading, examples)


def predict(dataset: Dataset, model: Model) -> Answers:
    """Return the answer of `model` to each example."""
    return dataset.kind.ask(dataset.examples, dataset.reading, model)


def score(
    dataset: Dataset,
    graph: Answers,
    reference: Answers,
    base: Answers | None = None,
    *,
    tolerance: float,
    seed: int = 0,
) -> tuple[DatasetRow, list[DifferingExample]]:
    """Compare the answers; return the report's row and every example on which two differ.

    The row counts differences that are no near ties as ``clear_disagreements``.

    Args:
        dataset: The examples.
        graph: The graph's answers.
        reference: Those of the unmerged adapter.
        base: Those of the same model without the adapter's low-rank part.
        tolerance: The relative L2 error that is tolerated.
        seed: Seeds the bootstrap.
    """
    metric = dataset.kind.metrics[dataset.metric]
    differing = _differing(dataset, graph, reference, tolerance)
    clear = [
        each
        for each in differing
        if each.reference_margin is not None
        and not is_near_tie(each.reference_margin, tolerance, of="answer")
    ]
    parts = {
        side: _parts(dataset, metric, answers)
        for side, answers in (("graph", graph), ("reference", reference), ("base", base))
        if answers is not None
    }
    with np.errstate(invalid="ignore", over="ignore"):  # a graph may return NaN or infinity
        values = {side: float(metric.value(each.sum(0))) for side, each in parts.items()}
        same = _same(metric, parts, values, seed)
    row = DatasetRow(
        metric=dataset.metric,
        count=len(dataset.examples.expected),
        cut=dataset.examples.cut,
        base=_or_none(values.get("base")),
        graph=_or_none(values["graph"]),
        reference=_or_none(values["reference"]),
        difference=same.difference,
        difference_interval=same.interval,
        confidence=CONFIDENCE,
        margin=same.margin,
        mcnemar=same.mcnemar,
        verdict=same.verdict,
        reason=same.reason,
        disagreements=len(differing),
        clear_disagreements=len(clear),
        differing=differing[:_SHOWN],
        differing_shown=min(len(differing), _SHOWN),
    )
    return row, differing


@dataclass(frozen=True)
class _Same:
    """Whether graph and reference are as accurate, and how that was found."""

    verdict: Verdict
    reason: str
    difference: float | None = None
    interval: tuple[float, float] | None = None
    margin: float | None = None
    mcnemar: McNemarRow | None = None


def _or_none(value: float | None) -> float | None:
    """Return a score as JSON has it: NaN and infinity are null."""
    return value if value is not None and np.isfinite(value) else None


def _parts(dataset: Dataset, metric: Metric, answers: Answers) -> Any:
    return metric.parts(answers.values, dataset.examples.expected, dataset.reading.labels)


def _same(
    metric: Metric, parts: Mapping[str, Any], values: Mapping[str, float], seed: int
) -> _Same:
    """Return whether graph and reference are as accurate, and how that was found."""
    graph, reference = parts["graph"], parts["reference"]
    if not np.isfinite([values["graph"], values["reference"]]).all():
        return _Same("fail", "the score is not finite")
    difference, interval = bootstrap_difference(graph, reference, metric.value, seed=seed)
    margin = metric.margin * (abs(values["reference"]) if metric.relative else 1.0)
    found = None
    if metric.right:
        hits = [each[:, 0] > 0 for each in (graph, reference)]
        only = [int(np.count_nonzero(a & ~b)) for a, b in (hits, hits[::-1])]
        found = McNemarRow(only_graph=only[0], only_reference=only[1], p_value=mcnemar(*only))
    verdict, reason = judge_pair(interval, margin, found.p_value if found else None)
    return _Same(verdict, reason, difference, interval, margin, found)


def _differing(
    dataset: Dataset, graph: Answers, reference: Answers, tolerance: float
) -> list[DifferingExample]:
    examples = dataset.examples
    margins = reference.margins
    return [
        DifferingExample(
            example=i,
            text=examples.texts[i],
            label=examples.expected[i],
            graph=_finite(graph.values[i]),
            reference=reference.values[i],
            reference_margin=_number(margins[i]) if margins is not None else None,
        )
        for i in range(len(examples.expected))
        if not dataset.kind.same(graph.values[i], reference.values[i], tolerance)
    ]


def _finite(value: Any) -> Any:
    """Return an answer as JSON has it: NaN and infinity are null."""
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _number(value: float) -> float:
    """Return a margin as JSON has it: the largest number for an infinite one."""
    return float(np.nan_to_num(value))
