"""Texts with a class, with a number, or with a tag for each word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import InputError, UsageError
from lora_export.core.shown_value import shown
from lora_export.ondevice.judge.near_ties import top2_margin
from lora_export.verification.datasets.class_names import HOW_TO_NAME, are_numbers
from lora_export.verification.datasets.kind import (
    Examples,
    Kind,
    Metric,
    count_cut,
    require_tokens,
    row_error,
    run_batches,
)
from lora_export.verification.datasets.questions import Answers
from lora_export.verification.datasets.scores import (
    class_parts,
    entity_parts,
    f1_of_classes,
    f1_of_counts,
    matthews_of_classes,
    moments,
    pearson_of_moments,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.verification.datasets.kind import DatasetLine, Reading
    from lora_export.verification.datasets.questions import Model

__all__ = ["CLASSES", "NUMBERS", "TAGS"]

Float64Array = npt.NDArray[np.float64]

_CLASS_FIELDS: Final = '{"text": …, "label": …}'
_TAG_FIELDS: Final = '{"tokens": ["…", …], "tags": ["…", …]}'
_SHOWN: Final = 80
_OFF: Final = 10.0
"""Two numbers are the same within so many errors of the tolerated size."""


# ------------------------------------------------------------------------------------- classes


def _read_classes(rows: Sequence[DatasetLine], reading: Reading) -> Examples:
    index = _index(reading)
    for number, row in rows:
        _require_text(row, number, reading)
    expected = [_class_of(row["label"], index, reading, number) for number, row in rows]
    return _of_texts(rows, reading, expected)


def _ask_classes(examples: Examples, reading: Reading, model: Model) -> Answers:
    del reading
    found = [output for _, output in run_batches(examples, model)]
    logits = np.concatenate(found).astype(np.float64)
    return Answers(_largest(logits), top2_margin(logits))


def _class_of(label: object, index: Mapping[str, int], reading: Reading, number: int) -> int:
    if isinstance(label, str) and label in index:
        return index[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(index):
        return label
    msg = f"line {number} of {str(reading.path)!r} has the unknown label {shown(label)}"
    unnamed = f" {HOW_TO_NAME}" if are_numbers(list(index)) else ""
    raise InputError(msg, hint=f"Known: {', '.join(index)}.{unnamed}")


def _hits(predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]) -> Float64Array:
    del labels
    right = [one == other for one, other in zip(predicted, expected, strict=True)]
    return np.stack([np.array(right, np.float64), np.ones(len(right))], axis=-1)


def _by_class(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    return class_parts(predicted, expected, len(labels))


# ------------------------------------------------------------------------------------- numbers


def _read_numbers(rows: Sequence[DatasetLine], reading: Reading) -> Examples:
    expected = []
    for number, row in rows:
        _require_text(row, number, reading)
        label = _finite_number(row["label"])
        if label is None:
            what = f"has the label {shown(row['label'], _SHOWN)}, no number"
            raise row_error(reading, number, what, _CLASS_FIELDS)
        expected.append(label)
    if len(set(expected)) == 1:
        msg = f"every label of the data set {str(reading.path)!r} is {expected[0]:g}"
        hint = "Pearson's correlation needs labels that differ: with these it says nothing."
        raise InputError(msg, hint=hint)
    return _of_texts(rows, reading, expected)


def _finite_number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if np.isfinite(number) else None


def _ask_numbers(examples: Examples, reading: Reading, model: Model) -> Answers:
    del reading
    found = [output for _, output in run_batches(examples, model)]
    return Answers(np.concatenate(found).astype(np.float64)[:, 0].tolist())


def _moments(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    del labels
    return moments(predicted, expected)


# ---------------------------------------------------------------------------------------- tags


def _read_tags(rows: Sequence[DatasetLine], reading: Reading) -> Examples:
    index = _index(reading)
    for number, row in rows:
        words, tags = row.get("tokens"), row.get("tags")
        if not (_words(words) and isinstance(tags, list) and len(words or ()) == len(tags)):
            raise row_error(reading, number, "has no tokens with a tag each", _TAG_FIELDS)
    spaced = reading.tokenizer.tells_words_by_spaces
    found = reading.encode(
        [
            [f" {w}" if spaced and not w[0].isspace() else w for w in row["tokens"]]
            for _, row in rows
        ],
        is_pretokenized=True,
    )
    require_tokens(found, rows, reading, _TAG_FIELDS)
    expected, notes = [], []
    for (number, row), encoding in zip(rows, found, strict=True):
        first: dict[int, int] = {}
        for at, word in enumerate(encoding.word_ids):
            if word is not None:
                first.setdefault(word, at)
        notes.append(list(first.values()))  # of a word that was cut off, nothing is asked
        expected.append([_class_of(row["tags"][word], index, reading, number) for word in first])
    return Examples(
        texts=[" ".join(row["tokens"]) for _, row in rows],
        expected=expected,
        batches=reading.batches(found),
        notes=notes,
        cut=count_cut(found),
    )


def _words(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(w, str) and w for w in value)


def _ask_tags(examples: Examples, reading: Reading, model: Model) -> Answers:
    del reading
    values: list[list[int | None]] = []
    margins: list[float] = []
    for _, output in run_batches(examples, model):
        for row in output.astype(np.float64):
            logits = row[examples.notes[len(values)]]  # (words, labels)
            values.append(_largest(logits))
            margins.append(float(top2_margin(logits).min(initial=np.inf)))
    return Answers(values, np.array(margins))


def _tag_hits(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    del labels
    rows = [
        (sum(a == b for a, b in zip(one, other, strict=True)), len(other))
        for one, other in zip(predicted, expected, strict=True)
    ]
    return np.array(rows, np.float64)


def _entities(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    pairs = zip(predicted, expected, strict=True)
    named = [
        [["O" if each is None else labels[each] for each in tags] for tags in pair]
        for pair in pairs
    ]
    return np.array([entity_parts(*pair) for pair in named], np.float64)


# -------------------------------------------------------------------------------------- shared


def _index(reading: Reading) -> dict[str, int]:
    if not reading.labels:
        msg = "the names of the labels, which a data set needs, are unknown"
        raise UsageError(msg, hint=HOW_TO_NAME)
    return {name: position for position, name in enumerate(reading.labels)}


def _require_text(row: Mapping[str, Any], number: int, reading: Reading) -> None:
    if not isinstance(row.get("text"), str) or "label" not in row:
        raise row_error(reading, number, "has no text and label", _CLASS_FIELDS)


def _of_texts(rows: Sequence[DatasetLine], reading: Reading, expected: Sequence[Any]) -> Examples:
    texts = [row["text"] for _, row in rows]
    found = reading.encode(texts)
    require_tokens(found, rows, reading, _CLASS_FIELDS)
    return Examples(texts, expected, reading.batches(found), cut=count_cut(found))


def _largest(logits: Float64Array) -> list[int | None]:
    """Return the class with the largest logit of each row; None where one is NaN or infinite."""
    known = np.asarray(np.isfinite(logits).all(axis=-1))
    return [
        int(each) if finite else None
        for each, finite in zip(logits.argmax(axis=-1), known, strict=True)
    ]


def _equal(one: Any, other: Any, tolerance: float) -> bool:
    del tolerance
    return bool(one == other)


def _near(one: Any, other: Any, tolerance: float) -> bool:
    return bool(abs(one - other) <= _OFF * tolerance * max(1.0, abs(other)))


CLASSES: Final = Kind(
    _CLASS_FIELDS, _read_classes, _ask_classes,
    {
        "accuracy": Metric(_hits, right=True),
        "f1": Metric(_by_class, f1_of_classes),
        "matthews": Metric(_by_class, matthews_of_classes),
    },
    _equal,
)  # fmt: skip
"""A sentence and its class."""

NUMBERS: Final = Kind(
    _CLASS_FIELDS, _read_numbers, _ask_numbers,
    {"pearson": Metric(_moments, pearson_of_moments)},
    _near,
)  # fmt: skip
"""A sentence and a number: a head of one output."""

TAGS: Final = Kind(
    _TAG_FIELDS, _read_tags, _ask_tags,
    {"f1": Metric(_entities, f1_of_counts), "accuracy": Metric(_tag_hits)},
    _equal,
)  # fmt: skip
"""Words and a tag for each; the first piece of a word speaks for it."""
