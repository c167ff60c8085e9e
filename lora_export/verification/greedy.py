"""Greedy decoding compared: the graph with its cache, the reference without one.

The reference runs the whole text again for every token; the graph decodes as a device would. A
row is compared up to its first difference: behind it the two continue different texts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.reports.parity_report import GreedyDifference, GreedyRow
from lora_export.ondevice.judge.decoding import without_cache
from lora_export.ondevice.judge.near_ties import is_near_tie, top2_margin
from lora_export.runtime.text_generation import Sampling, generate
from lora_export.verification.inputs.random_inputs import DECODER_IDS, longest_text, make_cases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.ondevice.judge.decoding import Decoder
    from lora_export.ondevice.judge.golden_files import Case
    from lora_export.verification.inputs.feeding import Feeding

__all__ = ["Greedy", "compare_greedy", "greedy_of_reference", "prompts_for"]

Array = npt.NDArray[Any]

_BATCH: Final = 2
_LENGTH: Final = 24
_STEPS: Final = 8
"""What is continued and by how many tokens, where model and cache have room for it."""


@dataclass(frozen=True)
class Greedy:
    """The tokens that the reference chose.

    Attributes:
        case: The texts that were continued.
        tokens: The tokens, ``[batch, steps]``.
        margins: The distance of the two largest logits, over the logits' root mean square.
    """

    case: Case = field(repr=False)
    tokens: Array = field(repr=False)
    margins: Array = field(repr=False)


def prompts_for(
    feeding: Feeding,
    config: Mapping[str, Any],
    *,
    seed: int,
    left_padding: bool,
    vocab_size: int | None = None,
) -> tuple[Case, int]:
    """Return a batch of texts with padding, and how many tokens they are continued by.

    Where positions or those of a static cache end early, half of them are left for the tokens; the
    last token is not run, and needs no place.

    Args:
        feeding: What the graph takes.
        config: The model's config.
        seed: Seeds the texts.
        left_padding: Whether padding comes first.
        vocab_size: The number of tokens, where it is not the config's.
    """
    longest = longest_text(config)
    longest = longest if feeding.room is None else min(longest, feeding.room)
    steps = min(_STEPS, (longest + 1) // 2)
    length = min(_LENGTH, longest - steps + 1)
    (case,) = make_cases(
        config,
        feeding.signature,
        seed=seed,
        left_padding=left_padding,
        shapes=feeding.shapes(((_BATCH, length),)),
        vocab_size=vocab_size,
    )
    return case, steps


def greedy_of_reference(
    run: Callable[[Mapping[str, Array]], Array], case: Case, *, steps: int
) -> Greedy:
    """Continue `case` token by token, each time from the beginning.

    Args:
        run: Maps ``input_ids``, ``attention_mask`` and ``position_ids`` (or an encoder's inputs
            and ``decoder_input_ids``) to logits of all positions.
        case: Texts, padded on the left.
        steps: How many tokens.
    """
    names: tuple[str, ...] = ("input_ids", "attention_mask", "position_ids")
    fixed: dict[str, Array] = {}
    if DECODER_IDS in case.feeds:  # the encoder's text stays as it is
        names = (DECODER_IDS,)
        fixed = {name: value for name, value in case.feeds.items() if name != DECODER_IDS}
    own = without_cache(case.feeds)
    feeds = {name: own[name] for name in names if name in own}
    tokens, margins = [], []
    for _ in range(steps):
        logits = run({**fixed, **feeds})[:, -1].astype(np.float64)
        margins.append(top2_margin(logits))
        chosen = logits.argmax(axis=-1)[:, None]
        tokens.append(chosen)
        added = {
            "input_ids": chosen,
            DECODER_IDS: chosen,
            "attention_mask": np.ones_like(chosen),
            "position_ids": case.mask.sum(axis=1, keepdims=True) + len(tokens) - 1,
        }
        feeds = {name: np.concatenate([v, added[name]], axis=1) for name, v in feeds.items()}
    return Greedy(case, np.concatenate(tokens, axis=1), np.stack(margins, axis=1))


def compare_greedy(
    decoder: Decoder, expected: Greedy, *, tolerance: float, switch: int | None = None
) -> GreedyRow:
    """Return how far the graph's tokens agree with the reference's."""
    feeds = expected.case.feeds
    texts = feeds[DECODER_IDS if DECODER_IDS in feeds else "input_ids"]
    prompts = [ids[mask].tolist() for ids, mask in zip(texts, expected.case.mask, strict=True)]
    rows, steps = expected.tokens.shape
    found = generate(
        decoder, prompts, max_new_tokens=steps, sampling=Sampling(), stop=(), padding=0,
        switch=switch,
    )  # fmt: skip
    tokens = np.array(list(found), np.int64).T
    differing, clear = [], []
    agreeing = 0
    for row in range(rows):
        places = np.flatnonzero(tokens[row] != expected.tokens[row])
        agreeing += int(places[0]) if len(places) else steps
        if len(places):
            step = int(places[0])
            margin = float(expected.margins[row, step])
            clear += [row] if not is_near_tie(margin, tolerance, of="answer") else []
            differing.append(
                GreedyDifference(
                    row=row,
                    step=step,
                    graph=int(tokens[row, step]),
                    reference=int(expected.tokens[row, step]),
                    reference_margin=margin,
                )
            )
    return GreedyRow(
        rows=rows,
        steps=steps,
        agreeing_tokens=agreeing,
        clear_disagreements=len(clear),
        disagreements=len(differing),
        differing=differing,
    )
