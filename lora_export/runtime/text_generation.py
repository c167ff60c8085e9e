"""Text from a decoder: greedy or sampled, a batch at a time, on any runner that keeps its cache.

    prefill: logits of the last position of each prompt, prompts padded on the left
    step:    a token for each row is chosen, appended and run, until each row has met a stop token

A distribution is cut in the order of transformers' generation: temperature, then the ``top_k``
largest, then the smallest set whose probabilities sum to at least ``top_p`` (Holtzman et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from lora_export.ondevice.judge.decoding import Decoder

__all__ = ["Sampling", "choose", "generate"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """The settings by which a token is chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the largest one (greedy).
        top_k: How many of the largest logits are in the draw; 0 for all.
        top_p: The probability that those in the draw have together; 1 for all.
        seed: Seeds the draw.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and np.isfinite(self.temperature)):
            msg = f"the temperature {self.temperature} is not 0 or more"
            raise UsageError(msg)
        if self.top_k < 0:
            msg = f"top_k {self.top_k} is not 0 or more"
            raise UsageError(msg)
        if not 0 < self.top_p <= 1:
            msg = f"top_p {self.top_p} is not above 0 and at most 1"
            raise UsageError(msg)


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Collection[int],
    padding: int,
    switch: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield the next token of each row; None for a row that has met a stop token before.

    Args:
        decoder: What is run.
        prompts: Token ids, at least one in each row.
        max_new_tokens: The most tokens of a row.
        sampling: How a token is chosen.
        stop: Tokens that end a row; the one that ended it is yielded.
        padding: Fills rows that are shorter, on the left, and those that have ended.
        switch: The longest text whose cache can be continued as it is; see
            `lora_export.weights.positions.long_rope_threshold`.

    Raises:
        UsageError: A prompt is empty.
    """
    if not prompts or not all(prompts):
        msg = "a prompt has no tokens"
        raise UsageError(msg, hint="Give at least one word.")
    random = np.random.default_rng(sampling.seed)
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), padding, np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    ended = np.zeros(len(prompts), bool)
    decoder.start(len(prompts))
    seen = 0
    for _ in range(max_new_tokens):
        if seen and positions[:, -1].max() == switch:  # one token longer than that
            decoder.start(len(prompts))
            seen = 0
        feeds = {
            "input_ids": ids[:, seen:],
            "attention_mask": mask,
            "position_ids": positions[:, seen:],
        }
        seen = ids.shape[1]
        tokens = choose(decoder.logits(feeds)[:, -1], sampling, random)
        yield [None if done else int(token) for token, done in zip(tokens, ended, strict=True)]
        tokens[ended] = padding
        ended |= np.isin(tokens, list(stop))
        if ended.all():
            return
        ids = np.concatenate([ids, tokens[:, None]], axis=1)
        mask = np.concatenate([mask, np.ones_like(tokens[:, None])], axis=1)
        positions = np.concatenate([positions, positions[:, -1:] + 1], axis=1)


def choose(logits: Array, sampling: Sampling, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a token for each row of `logits` ``[batch, vocabulary]``; float64 inside."""
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(axis=-1), np.int64)
    probabilities = _distribution(logits, sampling)
    cumulated = probabilities.cumsum(axis=-1)
    drawn = random.random((len(logits), 1)) * cumulated[:, -1:]
    return np.asarray((cumulated <= drawn).sum(axis=-1), np.int64)


def _distribution(logits: Array, sampling: Sampling) -> npt.NDArray[np.float64]:
    """Return the probabilities that are drawn from, ``[batch, vocabulary]``."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=-1, keepdims=True)  # so that nothing overflows as it is divided
    with np.errstate(over="ignore"):
        scores /= sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        least = np.partition(scores, -sampling.top_k, axis=-1)[:, -sampling.top_k, None]
        scores = np.where(scores < least, -np.inf, scores)
    probabilities = _softmax(scores)
    if sampling.top_p < 1:
        order = np.argsort(-probabilities, axis=-1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, axis=-1)
        before = ordered.cumsum(axis=-1) - ordered
        kept = np.empty(order.shape, bool)
        np.put_along_axis(kept, order, before < sampling.top_p, axis=-1)
        probabilities = np.where(kept, probabilities, 0.0)
        probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return probabilities


def _softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the softmax of scores whose largest is 0."""
    raised = np.exp(scores)
    result: npt.NDArray[np.float64] = raised / raised.sum(axis=-1, keepdims=True)
    return result
