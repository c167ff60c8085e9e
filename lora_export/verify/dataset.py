"""Task accuracy on a data set, by the graph and by the reference, on the same tokens."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.base.errors import InputError, MissingRuntimeError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Dataset", "Predictions", "load_dataset", "predict", "score"]

Array = npt.NDArray[Any]

_BATCH: Final = 32
_LIMIT_BYTES: Final = 1 << 28
_NEAR_TIE: Final = 10.0


@dataclass(frozen=True)
class Dataset:
    """Tokenized examples and their classes.

    Attributes:
        batches: Graph inputs, int64 ``[batch, length]``, padded to the longest of the batch.
        labels: The class of each example, ``[n]``.
        texts: The sentences, for reports.
    """

    batches: Sequence[Mapping[str, Array]] = field(repr=False)
    labels: npt.NDArray[np.int64] = field(repr=False)
    texts: Sequence[str] = field(repr=False)


@dataclass(frozen=True)
class Predictions:
    """Classes that a model chose, and how clearly: the margin between its two best logits."""

    classes: npt.NDArray[np.int64]
    margins: npt.NDArray[np.float64]


def load_dataset(
    path: Path,
    *,
    tokenizer_folder: Path,
    labels: Sequence[str],
    inputs: Sequence[str],
    padding: int | None = None,
) -> Dataset:
    """Read a JSONL file of ``{"text": …, "label": name or index}`` and tokenize it.

    Raises:
        InputError: The file is missing or damaged, or a label is unknown.
        MissingRuntimeError: The ``tokenizers`` package is not installed.
        UsageError: The names of the labels are not known.
    """
    if not labels:
        msg = "a data set needs the names of the labels"
        raise UsageError(msg, hint="Give them in the recipe (labels:) or with --labels.")
    rows = _read_rows(path)
    index = {name: position for position, name in enumerate(labels)}
    classes = [_class_of(row, index, path, number) for number, row in rows]
    texts = [str(row["text"]) for _, row in rows]
    tokenizer = _tokenizer(tokenizer_folder)
    batches = [
        _tokenize(tokenizer, texts[start : start + _BATCH], inputs, padding)
        for start in range(0, len(texts), _BATCH)
    ]
    return Dataset(batches, np.array(classes, np.int64), texts)


def predict(dataset: Dataset, run: Callable[[Mapping[str, Array]], Array]) -> Predictions:
    """Return the choices of `run`, which maps graph inputs to logits ``[batch, classes]``."""
    logits = np.concatenate([run(batch) for batch in dataset.batches]).astype(np.float64)
    ordered = np.sort(logits, axis=-1)
    scale = np.sqrt((logits**2).mean(axis=-1))
    return Predictions(
        logits.argmax(axis=-1).astype(np.int64), (ordered[:, -1] - ordered[:, -2]) / scale
    )


def score(
    dataset: Dataset, graph: Predictions, reference: Predictions, *, tolerance: float
) -> dict[str, Any]:
    """Compare the two on the data set; every example on which they differ is listed.

    A choice is nearly tied where the reference's margin is within ten errors of the tolerated size.
    """
    differ = [int(i) for i in np.flatnonzero(graph.classes != reference.classes)]
    clear = [i for i in differ if reference.margins[i] > _NEAR_TIE * tolerance]
    return {
        "metric": "accuracy",
        "count": len(dataset.labels),
        "graph": float((graph.classes == dataset.labels).mean()),
        "reference": float((reference.classes == dataset.labels).mean()),
        "disagreements": len(differ),
        "clear_disagreements": len(clear),
        "differing": [
            {
                "text": dataset.texts[i],
                "label": int(dataset.labels[i]),
                "graph": int(graph.classes[i]),
                "reference": int(reference.classes[i]),
                "reference_margin": float(reference.margins[i]),
            }
            for i in differ
        ],
    }


def _read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the examples, each with the number of its line."""
    try:
        if path.stat().st_size > _LIMIT_BYTES:
            msg = f"the data set {str(path)!r} is larger than {_LIMIT_BYTES} bytes"
            raise InputError(msg)
        lines = path.read_text("utf-8").split("\n")
        rows = [(n, json.loads(line)) for n, line in enumerate(lines, 1) if line.strip()]
    except OSError as error:
        msg = f"cannot read the data set {str(path)!r}: {error.strerror}"
        raise InputError(msg, hint="Check verify.dataset in the recipe.") from error
    except (ValueError, RecursionError) as error:
        msg = f"the data set {str(path)!r} is not JSON line by line: {error}"
        raise InputError(msg, hint='Each line is {"text": …, "label": …}.') from error
    bad = next((n for n, row in rows if not _is_example(row)), None)
    if bad is not None or not rows:
        where = f"line {bad} of " if bad else ""
        msg = f"{where}the data set {str(path)!r} has no text and label"
        raise InputError(msg, hint='Each line is {"text": …, "label": …}.')
    return rows


def _is_example(row: object) -> bool:
    return isinstance(row, dict) and isinstance(row.get("text"), str) and "label" in row


def _class_of(row: Mapping[str, Any], index: Mapping[str, int], path: Path, number: int) -> int:
    label = row["label"]
    if isinstance(label, str) and label in index:
        return index[label]
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(index):
        return label
    msg = f"line {number} of {str(path)!r} has the unknown label {label!r}"
    raise InputError(msg, hint=f"Known: {', '.join(index)}.")


def _tokenizer(folder: Path) -> Any:
    if importlib.util.find_spec("tokenizers") is None:
        msg = "a data set has to be tokenized, and tokenizers is not installed"
        raise MissingRuntimeError(msg, hint="Install lora-export[export].")
    import tokenizers

    path = folder / "tokenizer.json"
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        msg = f"cannot read the tokenizer {str(path)!r}: {error}"
        raise InputError(msg, hint="The base needs a tokenizer.json beside its weights.") from error


def _tokenize(
    tokenizer: Any, texts: Sequence[str], inputs: Sequence[str], padding: int | None
) -> dict[str, Array]:
    """Tokenize a batch, padded with the model's padding token to its longest sentence."""
    settings = {k: v for k, v in (tokenizer.padding or {}).items() if k != "length"}
    if padding is not None:
        settings["pad_id"] = padding
    tokenizer.enable_padding(**settings)
    encodings = tokenizer.encode_batch(list(texts))
    made = {
        "input_ids": [encoding.ids for encoding in encodings],
        "attention_mask": [encoding.attention_mask for encoding in encodings],
        "token_type_ids": [encoding.type_ids for encoding in encodings],
    }
    unknown = [name for name in inputs if name not in made]
    if unknown:
        msg = f"a data set cannot fill the graph's input {unknown[0]!r}"
        raise InputError(msg, hint="Data sets are for classification.")
    return {name: np.array(made[name], np.int64) for name in inputs}
