"""A decoder in ONNX Runtime whose cache stays where it is computed.

Keys and values that a step returns are bound as inputs of the next one, as they are: ONNX Runtime
allocates them on its device, and nothing copies them. Only token ids go in and logits come out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.base.errors import ExportDirectoryError, UnsupportedError
from lora_export.graph.signature import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxruntime import OrtValue

    from lora_export.runtime.ort import OrtRunner
    from lora_export.runtime.rows import RowRunner

__all__ = ["OrtDecoder"]

Array = npt.NDArray[Any]

_DTYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_LOGITS: Final = "logits"


class OrtDecoder:
    """A session with its cache; see `lora_export.runtime.generate.Decoder`.

    Args:
        runner: The session of a graph that reads and returns its keys and values.
        device: Where outputs are allocated: ``cpu``, or ``cuda`` for the CUDA provider.
        fixed: Inputs that are the same in every step.

    Raises:
        UnsupportedError: The graph has no cache.
    """

    def __init__(
        self,
        runner: OrtRunner | RowRunner,
        *,
        device: str = "cpu",
        fixed: Mapping[str, OrtValue] | None = None,
    ) -> None:
        self._session = runner.session
        self._device = device
        self._adapter = runner.adapter
        self._complete = runner.complete
        self._fixed = dict(fixed or {})
        self._past = [
            each
            for each in self._session.get_inputs()
            if each.name.startswith(PAST) and each.name not in self._fixed
        ]
        if not self._past:
            msg = "the graph has no cache of keys and values: it scores text and cannot generate"
            raise UnsupportedError(msg, hint="Export it again without --no-cache.")
        self._cache: dict[str, Any] = {}

    def start(self, batch: int) -> None:
        """Begin with an empty past for `batch` rows."""
        from onnxruntime import OrtValue

        self._cache = {}
        for each in self._past:
            _, heads, _, width = each.shape
            empty = np.zeros((batch, heads, 0, width), _DTYPES[each.type])
            self._cache[each.name] = OrtValue.ortvalue_from_numpy(empty, self._device, 0)

    def step(self, feeds: Mapping[str, Array]) -> Array:
        """Run new positions; return the logits of the last one, ``[batch, vocabulary]``.

        Raises:
            ExportDirectoryError: The graph fails on these inputs.
        """
        return self.logits(feeds)[:, -1]

    def logits(self, feeds: Mapping[str, Array]) -> Array:
        """Run new positions as `step` does; return what the graph does, ``[batch, n, vocabulary]``.

        Raises:
            ExportDirectoryError: The graph fails on these inputs.
        """
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        feeds = self._complete(feeds)
        bound = {**self._cache, **self._fixed}
        names = [each.name for each in self._session.get_inputs() if each.name not in bound]
        held = [np.ascontiguousarray(feeds[name]) for name in names]
        for name, value in zip(names, held, strict=True):  # bound by address: `held` keeps them
            binding.bind_cpu_input(name, value)
        for name, value in self._adapter.items():  # an active adapter would be ignored here
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value))
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        outputs = [each.name for each in self._session.get_outputs()]
        for name in outputs:
            binding.bind_output(name, "cpu" if name == _LOGITS else self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            msg = f"the graph failed in ONNX Runtime: {text}"
            raise ExportDirectoryError(msg, hint="Is the text longer than the model?") from error
        values = dict(zip(outputs, binding.get_outputs(), strict=True))
        self._cache = {name: values[PRESENT + name.removeprefix(PAST)] for name in self._cache}
        logits: Array = values[_LOGITS].numpy()
        return logits
