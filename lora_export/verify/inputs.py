"""Seeded inputs: several batch sizes and lengths, with padding where a batch has rows to pad.

Which inputs there are, their dtypes and axes, is read from the graph; the config bounds the values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.base.dtypes import by_name
from lora_export.base.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.graph.signature import Input, Signature

__all__ = [
    "CASES",
    "DECODER_IDS",
    "GOLDEN_CASES",
    "Case",
    "longest_text",
    "make_cases",
    "valid_rows",
]

Array = npt.NDArray[Any]

DECODER_IDS: Final = "decoder_input_ids"
"""What the decoder reads where an encoder has inputs of its own."""

CASES: Final = ((1, 8), (2, 24), (1, 1), (3, 33), (4, 64), (1, 128))
"""Batch and length of each input; lengths are cut to what the model takes."""

GOLDEN_CASES: Final = 2
"""How many of them are kept as golden inputs."""

_SMALL_PADDING: Final = 2
_POSITION_KEYS: Final = ("max_position_embeddings", "n_positions", "n_ctx", "max_target_positions")
_VOCABULARY_KEYS: Final = ("vocab_size", "n_vocab")


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        feeds: The graph's inputs.
        mask: Which positions count, ``[batch, length]``; ``[batch, 1]`` where there are none. Of
            an encoder-decoder these are the decoder's; no row is padded there.
    """

    feeds: Mapping[str, Array] = field(repr=False)
    mask: Array = field(repr=False)


def make_cases(
    config: Mapping[str, Any],
    signature: Signature,
    *,
    seed: int,
    left_padding: bool,
    shapes: Sequence[tuple[int, int]] = CASES,
    past: int = 0,
    padded: bool = True,
) -> list[Case]:
    """Return seeded inputs for a model.

    Args:
        config: The model's config; tells vocabulary, positions and padding.
        signature: The interface of the graph.
        seed: Seeds the values.
        left_padding: Whether padding comes first, as decoders expect it.
        shapes: Batch and length of each input; a length counts where the graph has one.
        past: Positions that a decoder's cache holds before the input.
        padded: Whether the rows of a batch after the first are shorter.

    Raises:
        UnsupportedError: The graph has an input or an axis that is not known here.
    """
    random = np.random.default_rng(seed)
    longest = longest_text(config)
    return [
        _make_case(
            random,
            config,
            signature,
            batch,
            min(length, longest),
            left_padding=left_padding,
            past=past,
            padded=padded,
        )
        for batch, length in shapes
    ]


def longest_text(config: Mapping[str, Any]) -> int:
    """Return how many tokens a model has positions for."""
    positions = next((int(config[k]) for k in _POSITION_KEYS if config.get(k)), 512)
    padding = config.get("pad_token_id") or 0  # RoBERTa's positions begin after it
    return max(1, positions - (padding + 1 if padding <= _SMALL_PADDING else 0))


def _make_case(
    random: np.random.Generator,
    config: Mapping[str, Any],
    signature: Signature,
    batch: int,
    length: int,
    *,
    left_padding: bool,
    past: int,
    padded: bool,
) -> Case:
    vocabulary = next((int(config[k]) for k in _VOCABULARY_KEYS if config.get(k)), 2)
    padding = config.get("pad_token_id")
    padding = padding if isinstance(padding, int) and 0 <= padding < vocabulary else 0
    ids = random.integers(0, vocabulary, (batch, length))
    ids[ids == padding] = (padding + 1) % vocabulary
    mask = np.ones((batch, length), np.int64)
    # the first row is full, the others end (or begin) earlier
    for row in range(1, batch if padded else 1):
        kept = max(1, length - row * length // (batch + 1))
        hidden = slice(0, length - kept) if left_padding else slice(kept, length)
        mask[row, hidden] = 0
        ids[row, hidden] = padding
    types = random.integers(0, max(1, int(config.get("type_vocab_size") or 2)), (batch, length))
    known: dict[str, Array] = {
        "input_ids": ids,
        "attention_mask": np.concatenate([np.ones((batch, past), np.int64), mask], axis=1),
        "token_type_ids": types * mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0) + past,
    }
    if any(each.name == DECODER_IDS for each in signature.inputs):
        written = max(1, length * 2 // 3)  # another length than the encoder's
        known[DECODER_IDS] = random.integers(0, vocabulary, (batch, written))
    sizes = {"batch": batch, "sequence": length, "past_sequence": past}
    feeds = {
        each.name: known[each.name].astype(by_name(each.dtype).numpy)
        if each.name in known
        else _numbers(random, each, sizes)
        for each in signature.inputs
    }
    positions = mask if "input_ids" in feeds else np.ones((batch, 1))
    if DECODER_IDS in feeds:
        positions = np.ones_like(feeds[DECODER_IDS])
    return Case(feeds, positions.astype(bool))


def _numbers(random: np.random.Generator, given: Input, sizes: Mapping[str, int]) -> Array:
    """Return normally distributed values for an input of numbers: pixels, features, no past."""
    dtype = by_name(given.dtype)
    strange = next((a for a in given.axes if isinstance(a, str) and a not in sizes), None)
    if strange is not None or not dtype.floating:
        what = f"axis {strange!r} of input" if strange is not None else f"{given.dtype} input"
        msg = f"no values are known for the {what} {given.name!r}"
        raise UnsupportedError(msg, hint="The graph can be built without: --no-verify.")
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in given.axes]
    return random.standard_normal(shape).astype(dtype.numpy)


def valid_rows(output: Array, case: Case, *, per_token: bool) -> Array:
    """Return the rows ``[n, width]`` of an output that count: padding does not.

    An output of the last position only has one row for each sequence.
    """
    if per_token and output.shape[1] == 1 != case.mask.shape[1]:
        per_token = False
    if not per_token:
        return output.reshape(len(case.mask), -1)
    return output[case.mask]
