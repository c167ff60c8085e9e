"""Texts that a decoder scores (perplexity), and texts that it writes (ROUGE, BLEU, exact match)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import UnsupportedError
from lora_export.runtime.text_generation import Sampling, generate
from lora_export.runtime.tokens import first_tokens, stop_tokens
from lora_export.verification.datasets.kind import (
    Examples,
    Kind,
    Metric,
    batches,
    count_cut,
    row_error,
    run_batches,
)
from lora_export.verification.datasets.questions import Answers
from lora_export.verification.datasets.scores import perplexity_of
from lora_export.verification.datasets.spans import answers_of, exact_parts, same_text
from lora_export.verification.datasets.text_scores import bleu_of_counts, bleu_parts, rouge_parts
from lora_export.verification.inputs.random_inputs import DECODER_IDS
from lora_export.weights.positions import long_rope_threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.verification.datasets.kind import DatasetLine, Reading
    from lora_export.verification.datasets.questions import Model

__all__ = ["TEXTS", "WRITTEN"]

Float64Array = npt.NDArray[np.float64]

_TEXT_FIELDS: Final = '{"text": …}'
_WRITTEN_FIELDS: Final = '{"prompt": …, "target": …}, or a list of targets'
_LOGITS_BYTES: Final = 1 << 28
_WRITTEN_BATCH: Final = 8
_OFF: Final = 10.0
"""Two likelihoods are the same within so many errors of the tolerated size."""


def _read_texts(rows: Sequence[DatasetLine], reading: Reading) -> Examples:
    for number, row in rows:
        if not isinstance(row.get("text"), str):
            raise row_error(reading, number, "has no text", _TEXT_FIELDS)
    texts = [row["text"] for _, row in rows]
    encodings = reading.encode(texts)
    for (number, _), encoding in zip(rows, encodings, strict=True):
        if len(encoding.ids) <= 1:
            raise row_error(reading, number, "has no second token to predict", _TEXT_FIELDS)
    longest = max(len(each.ids) for each in encodings)
    row_bytes = 16 * longest * int(reading.settings[0].get("vocab_size") or 1)
    size = max(1, min(_WRITTEN_BATCH, _LOGITS_BYTES // row_bytes))
    made = reading.batches(encodings, size)
    return Examples(texts, [None] * len(texts), made, cut=count_cut(encodings))


def _ask_texts(examples: Examples, reading: Reading, model: Model) -> Answers:
    """Return ``[−Σ log p, tokens]`` of each text: of every token behind the first."""
    del reading
    values: list[list[float]] = []
    for batch, logits in run_batches(examples, model):
        ids = batch["input_ids"][: len(logits)]
        mask = batch["attention_mask"][: len(ids), : ids.shape[1]]  # longer on a static cache
        if logits.shape[1] != ids.shape[1]:
            msg = "perplexity needs the logits of all positions, and the graph returns the last"
            raise UnsupportedError(msg, hint="Export it again without --logits last.")
        for row, tokens, counts in zip(logits, ids, mask.astype(bool), strict=True):
            values.append(_likelihood(row[counts], tokens[counts]))
    return Answers(values)


def _likelihood(logits: npt.NDArray[Any], tokens: npt.NDArray[Any]) -> list[float]:
    """Return ``−Σ log softmax(logits)[i, tokens[i + 1]]`` in float64, and how many there are."""
    total = 0.0
    for at in range(len(tokens) - 1):
        row = logits[at].astype(np.float64)
        highest = row.max()
        total += float(np.log(np.exp(row - highest).sum()) + highest - row[tokens[at + 1]])
    return [total, float(len(tokens) - 1)]


def _likelihoods(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    del expected, labels
    return np.array(predicted, np.float64)


def _as_likely(one: Any, other: Any, tolerance: float) -> bool:
    mean, reference = one[0] / one[1], other[0] / other[1]
    return bool(abs(mean - reference) <= _OFF * tolerance * max(1.0, abs(reference)))


def _read_written(rows: Sequence[DatasetLine], reading: Reading) -> Examples:
    expected = []
    for number, row in rows:
        targets = answers_of(row.get("target"))
        if not isinstance(row.get("prompt"), str) or not targets:
            raise row_error(reading, number, "has no prompt and target", _WRITTEN_FIELDS)
        expected.append(targets)
    if reading.rows or reading.tokens:
        msg = "texts are written token by token, and the graph takes a fixed number of them"
        raise UnsupportedError(msg, hint="Choose --metric perplexity (verify.metric).")
    prompts = [row["prompt"] for _, row in rows]
    encodings = reading.encode(prompts)
    for (number, _), encoding in zip(rows, encodings, strict=True):
        if not encoding.ids:
            raise row_error(reading, number, "has a prompt without tokens", _WRITTEN_FIELDS)
        if reading.left and len(encoding.ids) >= reading.longest:
            what = f"has a prompt of {len(encoding.ids)} tokens, which leaves none to write"
            raise row_error(reading, number, what, _WRITTEN_FIELDS)
    return Examples(prompts, expected, batches(encodings, _WRITTEN_BATCH), cut=count_cut(encodings))


def _ask_written(examples: Examples, reading: Reading, model: Model) -> Answers:
    stop = stop_tokens(*map(dict, reading.settings))
    texts: list[str] = []
    for batch in examples.batches:
        feeds, prompts = {}, [list(each.ids) for each in batch]
        if DECODER_IDS in reading.signature.input_names:
            feeds = reading.feeds(batch)
            prompts = [first_tokens(*map(dict, reading.settings))] * len(batch)
        left = reading.longest - max(map(len, prompts))
        rows: list[list[int]] = [[] for _ in batch]
        for tokens in generate(
            model.decoder(feeds), prompts, sampling=Sampling(), stop=stop,
            max_new_tokens=min(reading.max_new_tokens, left), padding=reading.padding,
            switch=long_rope_threshold(reading.settings[0]),
        ):  # fmt: skip
            for row, token in zip(rows, tokens, strict=True):
                if token is not None and token not in stop:
                    row.append(token)
        texts += [reading.tokenizer.decode(row).strip() for row in rows]
    return Answers(texts)


def _rouge(
    predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]
) -> Float64Array:
    del labels
    return rouge_parts(predicted, expected)


def _bleu(predicted: Sequence[Any], expected: Sequence[Any], labels: Sequence[str]) -> Float64Array:
    del labels
    return bleu_parts(predicted, expected)


TEXTS: Final = Kind(
    _TEXT_FIELDS, _read_texts, _ask_texts,
    {"perplexity": Metric(_likelihoods, perplexity_of, relative=True, lower_is_better=True)},
    _as_likely,
)  # fmt: skip
"""Texts of which every token is predicted."""

WRITTEN: Final = Kind(
    _WRITTEN_FIELDS, _read_written, _ask_written,
    {
        "rouge": Metric(_rouge),
        "bleu": Metric(_bleu, bleu_of_counts, margin=1.0),
        "exact_match": Metric(exact_parts, right=True),
    },
    same_text,
)  # fmt: skip
"""Prompts, and what should be written behind them (or made of them)."""
