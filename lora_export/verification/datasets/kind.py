"""A kind of data set: how a line is read, what the model is asked, how answers are scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import InputError
from lora_export.runtime.tokens import padded, require_rows
from lora_export.verification.datasets.scores import share
from lora_export.verification.inputs.random_inputs import text_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_export.graph.spec.signature import Signature
    from lora_export.runtime.text_tokenizer import TextTokenizer
    from lora_export.verification.datasets.questions import Answers, Model

__all__ = [
    "BATCH",
    "DatasetLine",
    "Examples",
    "Kind",
    "Metric",
    "Reading",
    "batches",
    "count_cut",
    "require_tokens",
    "row_error",
    "run_batches",
]

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

BATCH: Final = 32
"""Examples that are run together."""


@dataclass(frozen=True)
class Metric:
    """A metric: how answers are scored.

    Attributes:
        parts: Maps answers, what is expected and the names of the labels to a row of numbers for
            each example; see `lora_export.verification.datasets.scores`.
        value: Scores their sum.
        margin: A difference up to this does not matter; of the reference's value where `relative`.
        right: Whether the first number says that an example is right: McNemar's test is for these.
        relative: Whether the margin is a share of the value.
        lower_is_better: Whether a smaller value is a better score.
    """

    parts: Callable[[Sequence[Any], Sequence[Any], Sequence[str]], Float64Array]
    value: Callable[[Float64Array], Float64Array] = share
    margin: float = 0.01
    right: bool = False
    relative: bool = False
    lower_is_better: bool = False


@dataclass(frozen=True)
class Reading:
    """The tokenizer and settings with which lines are read.

    Attributes:
        path: The data set, for messages.
        tokenizer: The base's, of ``tokenizers``.
        labels: The names of the labels.
        signature: The inputs of the graph.
        padding: The token that fills rows.
        longest: How many tokens the model has positions for.
        left: Whether rows are filled on the left.
        settings: ``config.json`` and ``generation_config.json``.
        max_new_tokens: The most tokens of a text that is written.
        rows: How many rows the graph takes; None for any number.
        tokens: How many tokens the graph takes; None for any number.
    """

    path: Path
    tokenizer: TextTokenizer = field(repr=False)
    labels: Sequence[str]
    signature: Signature
    padding: int
    longest: int
    left: bool
    settings: tuple[Mapping[str, Any], Mapping[str, Any]] = field(repr=False)
    max_new_tokens: int
    rows: int | None = None
    tokens: int | None = None

    def feeds(self, encodings: Sequence[Any]) -> dict[str, Array]:
        """Return the graph's inputs for a batch of encodings, filled to the longest.

        A graph of a fixed shape gets that: more padding, and the last row again and again, whose
        answers `run_batches` leaves out.
        """
        rows = [*encodings, *[encodings[-1]] * ((self.rows or 0) - len(encodings))]
        ids, mask = padded([each.ids for each in rows], self.padding, left=self.left)
        types = np.zeros_like(ids)
        types[mask == 1] = [kind for each in rows for kind in each.type_ids]
        missing = max(0, (self.tokens or 0) - ids.shape[1])
        room = ((0, 0), (missing, 0) if self.left else (0, missing))
        ids = np.pad(ids, room, constant_values=self.padding)
        return text_feeds(self.signature, ids, np.pad(mask, room), np.pad(types, room))

    def batches(self, encodings: Sequence[Any], size: int = BATCH) -> list[dict[str, Array]]:
        """Return the graph's inputs for all encodings, `size` of them together at most."""
        return [self.feeds(each) for each in batches(encodings, self.rows or size)]

    def encode(self, inputs: Sequence[Any], **settings: Any) -> list[Any]:
        """Tokenize texts, cut to what the model takes; nothing is filled."""
        found = self.tokenizer.encode(inputs, **settings)
        require_rows([each.ids for each in found], dict(self.settings[0]))
        return found


class DatasetLine(NamedTuple):
    """A line of the data set: its number in the file, and the JSON object that the user wrote."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Examples:
    """The examples of a data set.

    Attributes:
        texts: Each example as a report shows it.
        expected: What is right.
        batches: What the model is given, `BATCH` examples each.
        notes: What the answers are read with, one for each example.
        cut: How many did not fit the model whole.
    """

    texts: Sequence[str] = field(repr=False)
    expected: Sequence[Any] = field(repr=False)
    batches: Sequence[Any] = field(repr=False)
    notes: Sequence[Any] = field(default=(), repr=False)
    cut: int = 0


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        fields: What a line holds, for messages.
        read: Maps numbered lines to examples.
        ask: Maps examples and a model to its answers.
        metrics: By name, the first by default.
        same: Whether two answers are the same, at the dtype's tolerance.
    """

    fields: str
    read: Callable[[Sequence[DatasetLine], Reading], Examples]
    ask: Callable[[Examples, Reading, Model], Answers]
    metrics: Mapping[str, Metric]
    same: Callable[[Any, Any, float], bool]


def batches(rows: Sequence[Any], size: int = BATCH) -> list[Sequence[Any]]:
    """Return rows in batches."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def run_batches(examples: Examples, model: Model) -> Iterator[tuple[Mapping[str, Array], Array]]:
    """Yield each batch and the model's output for its examples."""
    left = len(examples.expected)
    for batch in examples.batches:
        found = model.run(batch)[:left]
        left -= len(found)
        yield batch, found


def count_cut(encodings: Sequence[Any]) -> int:
    """Return how many of the texts did not fit."""
    return sum(bool(each.overflowing) for each in encodings)


def require_tokens(
    encodings: Sequence[Any], rows: Sequence[tuple[int, Any]], reading: Reading, fields: str
) -> None:
    """Require that something is left of every text.

    Raises:
        InputError: The tokenizer makes nothing of one.
    """
    for (number, _), encoding in zip(rows, encodings, strict=True):
        if not encoding.ids:
            raise row_error(reading, number, "has a text without tokens", fields)


def row_error(reading: Reading, number: int, what: str, fields: str) -> InputError:
    """Return the error of a line that is no example of its kind."""
    msg = f"line {number} of the data set {str(reading.path)!r} {what}"
    return InputError(msg, hint=f"Each line is {fields}.")
