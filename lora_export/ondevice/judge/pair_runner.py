"""An encoder and a decoder run as one graph, in any runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_export.ondevice.device_errors import UsageError
from lora_export.ondevice.graph_runner import GraphRunner
from lora_export.ondevice.judge.decoding import DECODER_IDS, PAST, PRESENT, run_in_pieces
from lora_export.ondevice.judge.preset_runner import PresetRunner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.ondevice.graph_runner import Array, Input

__all__ = ["PairRunner"]

_MASK = "attention_mask"


class PairRunner(GraphRunner):
    """The encoder runs once; the decoder reads its keys and values, and writes a cache of its own.

    ``decoder_input_ids`` are run as a prefill and single steps, whose logits are returned together.

    Args:
        encoder: Returns ``present.{i}.encoder.*``, which the decoder reads in every run.
        decoder: Reads and returns ``{i}.decoder.*``, its cache.
        empty: Heads, width and dtype of each input of the decoder's own cache.

    Attributes:
        encoder: The encoder's runner, to be run by itself.
        decoder: The decoder's, for those who write one token after the other.
    """

    def __init__(
        self,
        encoder: GraphRunner,
        decoder: GraphRunner,
        empty: Mapping[str, tuple[int, int, str]],
    ) -> None:
        self.encoder, self.decoder, self._empty = encoder, decoder, empty
        self.inputs = (*encoder.inputs, DECODER_IDS)
        self.optional: Mapping[str, Input] = {}
        self.outputs = ("logits",)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the logits of all positions of ``decoder_input_ids``.

        Raises:
            UsageError: An input is missing.
            LoraExportError: See `GraphRunner.run`.
        """
        for name in self.inputs:
            if name not in feeds:
                msg = f"the encoder and the decoder also read {name!r}"
                raise UsageError(msg, hint=f"Their inputs: {', '.join(self.inputs)}.")
        seen = self.encoder.run(feeds)
        fixed = {
            PAST + name[len(PRESENT) :]: each
            for name, each in seen.items()
            if name.startswith(PRESENT)
        }
        if _MASK in feeds:
            fixed[f"encoder_{_MASK}"] = feeds[_MASK]
        ids = feeds[DECODER_IDS]
        past = {
            name: np.zeros((len(ids), heads, 0, width), dtype)
            for name, (heads, width, dtype) in self._empty.items()
        }
        decoder = PresetRunner(self.decoder, fixed)
        return {"logits": run_in_pieces(decoder, {"input_ids": ids, **past}, "logits")}

    def close(self) -> None:
        """Close both."""
        self.encoder.close()
        self.decoder.close()
