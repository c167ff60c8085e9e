"""Seeded inputs: several batch sizes and lengths, with padding where a batch has rows to pad."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CASES", "GOLDEN_CASES", "Case", "make_cases", "valid_rows"]

Array = npt.NDArray[Any]

CASES: Final = ((1, 8), (2, 24), (1, 1), (3, 33), (4, 64), (1, 128))
"""Batch and length of each input; lengths are cut to what the model takes."""

GOLDEN_CASES: Final = 2
"""How many of them are kept as golden inputs."""

_SMALL_PADDING: Final = 2
_POSITION_KEYS: Final = ("max_position_embeddings", "n_positions", "n_ctx")
_VOCABULARY_KEYS: Final = ("vocab_size", "n_vocab")


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        feeds: The graph's inputs, int64 ``[batch, length]``.
        mask: Which positions count, ``[batch, length]``.
    """

    feeds: Mapping[str, Array] = field(repr=False)
    mask: Array = field(repr=False)


def make_cases(
    config: Mapping[str, Any],
    inputs: Sequence[str],
    *,
    seed: int,
    left_padding: bool,
    shapes: Sequence[tuple[int, int]] = CASES,
) -> list[Case]:
    """Return seeded inputs for a model.

    Args:
        config: The model's config; tells vocabulary, positions and padding.
        inputs: The names that the graph takes.
        seed: Seeds the token ids.
        left_padding: Whether padding comes first, as decoders expect it.
        shapes: Batch and length of each input.
    """
    random = np.random.default_rng(seed)
    positions = next((int(config[k]) for k in _POSITION_KEYS if config.get(k)), 512)
    padding = config.get("pad_token_id") or 0  # RoBERTa's positions begin after it
    longest = max(1, positions - (padding + 1 if padding <= _SMALL_PADDING else 0))
    return [
        _make_case(random, config, inputs, batch, min(length, longest), left_padding=left_padding)
        for batch, length in shapes
    ]


def _make_case(
    random: np.random.Generator,
    config: Mapping[str, Any],
    inputs: Sequence[str],
    batch: int,
    length: int,
    *,
    left_padding: bool,
) -> Case:
    vocabulary = next((int(config[k]) for k in _VOCABULARY_KEYS if config.get(k)), 2)
    padding = config.get("pad_token_id")
    padding = padding if isinstance(padding, int) and 0 <= padding < vocabulary else 0
    ids = random.integers(0, vocabulary, (batch, length))
    ids[ids == padding] = (padding + 1) % vocabulary
    mask = np.ones((batch, length), np.int64)
    for row in range(1, batch):  # the first row is full, the others end (or begin) earlier
        kept = max(1, length - row * length // (batch + 1))
        hidden = slice(0, length - kept) if left_padding else slice(kept, length)
        mask[row, hidden] = 0
        ids[row, hidden] = padding
    made: dict[str, Array] = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in inputs:
        types = random.integers(0, int(config.get("type_vocab_size", 2)), (batch, length))
        made["token_type_ids"] = types * mask
    if "position_ids" in inputs:
        made["position_ids"] = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return Case({name: made[name].astype(np.int64) for name in inputs}, mask.astype(bool))


def valid_rows(output: Array, case: Case, *, per_token: bool) -> Array:
    """Return the rows ``[n, width]`` of an output that count: padding does not."""
    if not per_token:
        return output.reshape(len(case.mask), -1)
    return output[case.mask]
