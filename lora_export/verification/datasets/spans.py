"""Questions whose answer is a piece of a text (SQuAD 1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import InputError
from lora_export.verification.datasets.kind import (
    Examples,
    Kind,
    Metric,
    count_cut,
    row_error,
    run_batches,
)
from lora_export.verification.datasets.questions import Answers
from lora_export.verification.datasets.scores import best_exact, best_f1

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_export.verification.datasets.kind import DatasetLine, Reading
    from lora_export.verification.datasets.questions import Model

__all__ = ["SPANS", "answers_of", "exact_parts", "same_text"]

Float64Array = npt.NDArray[np.float64]

_FIELDS: Final = '{"question": …, "context": …, "answers": ["…", …]}'
_NO_ROOM: Final = "Truncation error"
"""How tokenizers says that a question leaves no room for its text."""

_LONGEST: Final = 30
"""Tokens of an answer, as in transformers' scripts for SQuAD."""


def _read(rows: Sequence[DatasetLine], reading: Reading) -> Examples:
    expected = []
    for number, row in rows:
        answers = row.get("answers")
        found = answers_of(answers.get("text") if isinstance(answers, dict) else answers)
        strings = all(isinstance(row.get(key), str) for key in ("question", "context"))
        if not strings or not found:
            raise row_error(reading, number, "is no question with its answers", _FIELDS)
        expected.append(found)
    longest = min(reading.longest, reading.tokenizer.longest or reading.longest)
    reading.tokenizer.cut_to(longest, strategy="only_second")
    encodings = _encoded(rows, reading)
    return Examples(
        texts=[row["question"] for _, row in rows],
        expected=expected,
        batches=reading.batches(encodings),
        notes=[
            (row["context"], encoding) for (_, row), encoding in zip(rows, encodings, strict=True)
        ],
        cut=count_cut(encodings),
    )


def _encoded(rows: Sequence[DatasetLine], reading: Reading) -> list[Any]:
    found = []
    for number, row in rows:
        try:
            found += reading.encode([(row["question"], row["context"])])
        except InputError as error:  # noqa: PERF203  (the line has to be named)
            if _NO_ROOM not in error.message:
                raise
            what = "has a question that leaves no room for its text"
            raise row_error(reading, number, what, _FIELDS) from error
    return found


def _ask(examples: Examples, reading: Reading, model: Model) -> Answers:
    del reading
    values: list[str | None] = []
    margins: list[float] = []
    for _, output in run_batches(examples, model):
        for row in output.astype(np.float64):  # (length, 2): start and end
            context, encoding = examples.notes[len(values)]
            text, margin = _best(row, context, encoding)
            values.append(text)
            margins.append(margin)
    return Answers(values, np.array(margins))


def _best(row: Float64Array, context: str, encoding: Any) -> tuple[str | None, float]:
    """Return the text of the likeliest span of the context, and how clear the choice is.

    There is none where a logit is NaN or infinite.
    """
    inside = [at for at, part in enumerate(encoding.sequence_ids) if part == 1]
    if not inside:
        return "", np.inf
    if not np.isfinite(row[inside]).all():
        return None, 0.0
    start, end = row[inside, 0], row[inside, 1]
    scores = start[:, None] + end[None, :]
    steps = np.arange(len(inside))
    length = steps[None, :] - steps[:, None]
    scores[(length < 0) | (length >= _LONGEST)] = -np.inf
    first, last = np.unravel_index(scores.argmax(), scores.shape)
    best = scores[first, last]
    scores[first, last] = -np.inf
    scale = np.sqrt((row[inside] ** 2).mean()) or 1.0
    begin, stop = encoding.offsets[inside[first]][0], encoding.offsets[inside[last]][1]
    return context[begin:stop], float((best - scores.max()) / scale)


def answers_of(value: object) -> list[str]:
    """Return one text or several as a list; empty where it is neither."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        return []
    return texts


def exact_parts(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    """Return whether each answer is one of its references, and 1: ``[n, 2]``."""
    return _mean(best_exact, predicted, expected, labels)


def _f1_parts(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    return _mean(best_f1, predicted, expected, labels)


def _mean(
    value: Callable[[str, Sequence[str]], float],
    predicted: Sequence[Any],
    expected: Sequence[Any],
    labels: Sequence[str],
) -> Float64Array:
    del labels
    rows = [
        (0.0 if one is None else value(one, other), 1.0)
        for one, other in zip(predicted, expected, strict=True)
    ]
    return np.array(rows, np.float64)


def same_text(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two texts are equal."""
    del tolerance
    return bool(one == other)


SPANS: Final = Kind(
    _FIELDS, _read, _ask,
    {"f1": Metric(_f1_parts), "exact_match": Metric(exact_parts, right=True)},
    same_text,
)  # fmt: skip
"""A question, a text, and the pieces of it that answer."""
