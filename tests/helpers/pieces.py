"""A text that a decoder with a cache is fed piece by piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.ondevice.judge.decoding import on_static_cache

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["run_in_pieces"]


def run_in_pieces(
    graph: Any,
    ids: Array,
    past: Mapping[str, Array],
    *,
    ends: Sequence[int] = (10, 11, 12),
    static: int | None = None,
) -> Iterator[tuple[dict[str, Array], dict[str, Array]]]:
    """Yield the feeds and the outputs of each run: a prefill, and steps behind it.

    Args:
        graph: What has ``run(feeds)``.
        ids: The text, ``int64[batch, length]``.
        past: The cache before it: empty, or the buffers of a static one.
        ends: Where the pieces end.
        static: The positions of a static cache.
    """
    start, past = 0, dict(past)
    for end in ends:
        text = {
            "input_ids": ids[:, start:end],
            "attention_mask": np.ones((len(ids), end), np.int64),
            "position_ids": np.tile(np.arange(start, end), (len(ids), 1)),
        }
        if static is not None:
            text = dict(on_static_cache(text, written=start, length=static))
        feeds = {**text, **past}
        found = graph.run(feeds)
        yield feeds, found
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        start = end
