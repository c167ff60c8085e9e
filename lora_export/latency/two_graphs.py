"""An encoder and a decoder, timed in turns.

prefill   the encoder on an input, then the decoder's first token: the time to the first token
decode    the decoder's next token after `past` others: the time per token
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import by_name
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH
from lora_export.graph.spec.signature import PAST, PRESENT
from lora_export.runtime.bound import BoundRun
from lora_export.runtime.ort import open_session
from lora_export.verification.inputs.feeding import signature_of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from lora_export.core.manifest import GraphRecord
    from lora_export.graph.spec.signature import Signature
    from lora_export.latency.points import Bind, Point, Source

    Array = npt.NDArray[Any]

__all__ = ["Prefill", "open_two"]

_MASK: Final = "encoder_attention_mask"
_CROSS: Final = ".encoder."
"""In the names of keys and values that the encoder's graph makes for the decoder."""


def open_two(source: Source, record: GraphRecord, provider: str, *, threads: int) -> Bind:
    """Open the two graphs of a record in ONNX Runtime.

    Args:
        source: The export.
        record: A graph with an encoder.
        provider: The full name of an execution provider.
        threads: Threads within an operator; 0 leaves the choice to the runtime.

    Raises:
        LoraExportError: A graph or its weights are damaged or missing.
    """
    assert record.encoder is not None  # noqa: S101  (the caller looked)
    encoder, decoder = (
        open_session(resolve_inside(source.export_dir, file), provider=provider, threads=threads)
        for file in (record.encoder.onnx, record.onnx)
    )
    inputs = [node.name for node in encoder.get_inputs()]
    signature = signature_of_file(source.export_dir, record.onnx)

    def bind(point: Point, seed: int) -> Callable[[], object]:
        feeds = source.feeds(point, BASE_GRAPH, seed=seed)
        encode = BoundRun(encoder, provider, {name: feeds[name] for name in inputs})
        encode()  # the first run makes the memory that every later one writes to
        cross = {
            PAST + name.removeprefix(PRESENT): value
            for name, value in encode.values().items()
            if name.startswith(PRESENT)
        }
        step = BoundRun(
            decoder, provider, _decoder_feeds(signature, feeds, point, seed), values=cross
        )
        return step if point.kind == "decode" else Prefill(encode, step)

    return bind


class Prefill:
    """The encoder, then the decoder's first token; calling it runs both."""

    def __init__(self, encode: BoundRun, step: BoundRun) -> None:
        self._encode, self._step = encode, step

    def __call__(self) -> None:
        """Run the encoder's graph and the decoder's."""
        self._encode()
        self._step()

    def outputs(self) -> dict[str, Array]:
        """Return the decoder's outputs of the last run, copied to the CPU."""
        return self._step.outputs()


def _decoder_feeds(
    signature: Signature, feeds: Mapping[str, Array], point: Point, seed: int
) -> dict[str, Array]:
    """Return a token for each row, the cache of `past` others, and the encoder's mask."""
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for each in signature.inputs:
        if each.name == "input_ids":
            found[each.name] = np.full((point.batch, 1), 2, by_name(each.dtype).numpy)
        elif each.name == _MASK:
            found[each.name] = np.asarray(feeds["attention_mask"], by_name(each.dtype).numpy)
        elif each.name.startswith(PAST) and _CROSS not in each.name:
            _, heads, _, width = each.axes
            shape = (point.batch, int(heads), point.past, int(width))
            found[each.name] = random.standard_normal(shape).astype(by_name(each.dtype).numpy)
    return found
