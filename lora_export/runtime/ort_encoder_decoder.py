"""An encoder and a decoder in ONNX Runtime: the encoder once, the decoder step by step.

What the encoder's graph returns as ``present.{i}.encoder.*`` is bound, where it lies, as the
decoder's ``past_key_values.{i}.encoder.*`` of every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_export.core.files import resolve_inside
from lora_export.graph.spec.signature import PAST, PRESENT
from lora_export.ondevice.graph_runner import GraphRunner
from lora_export.ondevice.judge.decoding import DECODER_IDS, decode_in_pieces
from lora_export.ondevice.ort.ort_session import run_error
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.ort_decoder import OrtDecoder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord
    from lora_export.ondevice.graph_runner import Input

__all__ = ["OrtEncoderDecoder"]

Array = npt.NDArray[Any]

_MASK = "attention_mask"
_HIDDEN = "last_hidden_state"


class OrtEncoderDecoder(GraphRunner):
    """The two sessions of one graph record; see `lora_export.graph.trace.encoder_decoder`.

    Args:
        export_dir: The export directory.
        record: A graph with an encoder.
        device: Where outputs are allocated: ``cpu``, or ``cuda`` for the CUDA provider.
        exact: See `OrtRunner`.

    Raises:
        LoraExportError: See `lora_export.runtime.ort.open_session`.
    """

    def __init__(
        self, export_dir: Path, record: GraphRecord, *, device: str = "cpu", exact: bool = False
    ) -> None:
        assert record.encoder is not None  # noqa: S101  (the caller's)
        self._encoder = OrtRunner(resolve_inside(export_dir, record.encoder.onnx), exact=exact)
        self._decoder = OrtRunner(resolve_inside(export_dir, record.onnx), exact=exact)
        self._device = device
        self.inputs = (*self._encoder.inputs, DECODER_IDS)
        self.optional: Mapping[str, Input] = {}
        self.outputs = ("logits",)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the logits of all positions of ``decoder_input_ids``, decoded in pieces.

        Raises:
            LoraExportError: The graphs cannot be run on these inputs.
        """
        decoder, _ = self.encode(feeds)
        return {"logits": decode_in_pieces(decoder, feeds[DECODER_IDS])}

    def encode(self, feeds: Mapping[str, Array]) -> tuple[OrtDecoder, Array]:
        """Return the decoder on the encoder's output for `feeds`, and that output.

        Args:
            feeds: The encoder's inputs: ``input_ids`` and ``attention_mask`` ``[batch, length]``,
                or ``input_features``; others are not looked at.

        Raises:
            ExportDirectoryError: The graph cannot be run on these inputs.
        """
        from onnxruntime import OrtValue

        session = self._encoder.session
        binding = session.io_binding()
        held = {name: np.ascontiguousarray(feeds[name]) for name in self._encoder.inputs}
        for name, value in held.items():  # bound by address: `held` keeps them
            binding.bind_cpu_input(name, value)
        for name in self._encoder.outputs:
            binding.bind_output(name, "cpu" if name == _HIDDEN else self._device)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise run_error(error) from error
        values = dict(zip(self._encoder.outputs, binding.get_outputs(), strict=True))
        hidden: Array = values.pop(_HIDDEN).numpy()
        fixed = {PAST + name.removeprefix(PRESENT): value for name, value in values.items()}
        if _MASK in held:
            fixed[f"encoder_{_MASK}"] = OrtValue.ortvalue_from_numpy(held[_MASK], self._device, 0)
        return OrtDecoder(self._decoder, device=self._device, fixed=fixed), hidden

    def close(self) -> None:
        """Close both sessions."""
        self._encoder.close()
        self._decoder.close()
