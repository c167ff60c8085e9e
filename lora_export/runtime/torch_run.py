"""The model in torch, eager or compiled, for timing: its inputs stay on its device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.errors import MissingRuntimeError, UnsupportedError
from lora_export.graph.spec.signature import PAST
from lora_export.runtime.reference import Reference, quiet, require_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from lora_export.adapters.canonical import Adapter
    from lora_export.graph.spec.tasks import Task
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["TorchRun", "require_torch"]


def require_torch(device: str) -> None:
    """Raise `MissingRuntimeError` where torch with its kin, or the device, is not there."""
    require_reference()
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        msg = f"torch {torch.__version__} sees no CUDA device"
        raise MissingRuntimeError(msg, hint="See what is there: lora-export doctor")


class TorchRun:
    """The base, with an adapter unmerged or without one, in float32.

    Args:
        checkpoint: The base.
        task: The export's task.
        adapter: The adapter, or None for the base alone.
        labels_count: The width of the base's own head.
        vocab_size: The number of tokens that the adapter brings, where that is not the base's.
        device: ``cpu`` or ``cuda``.
        compiled: Whether ``torch.compile`` has the model.
        threads: Of torch's operators on the CPU; 0 leaves the choice to torch.

    Raises:
        LoraExportError: See `Reference`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        task: Task,
        *,
        adapter: Adapter | None,
        labels_count: int | None,
        vocab_size: int | None = None,
        device: str,
        compiled: bool,
        threads: int,
    ) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        reference = Reference(
            checkpoint, task, adapter=adapter, labels_count=labels_count, vocab_size=vocab_size
        )
        self._device = device
        self._model = reference.model.to(device)
        self._call = torch.compile(self._model) if compiled else self._model

    def bind(self, feeds: Mapping[str, npt.NDArray[Any]], *, past: int) -> Callable[[], object]:
        """Return one run of the model on `feeds`; of a decoder, after `past` positions.

        The run ends when the device is done. A decoder's cache grows by what a run adds, and is cut
        back at its end.

        Raises:
            UnsupportedError: torch cannot run the model on these inputs.
        """
        import torch

        inputs = {
            name: torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
            for name, values in feeds.items()
            if not name.startswith(PAST)
        }
        with torch.inference_mode(), quiet():
            cache = self._filled(inputs, past) if past else None
        further = {"past_key_values": cache, "use_cache": True} if cache is not None else {}
        added = inputs["input_ids"].shape[1] if past else 0
        on_gpu = self._device == "cuda"

        def run() -> object:
            with torch.inference_mode():
                output = self._call(**inputs, **further, return_dict=True)
                if cache is not None:
                    cache.crop(-added)
                if on_gpu:
                    torch.cuda.synchronize()
            return output

        try:
            with quiet():
                run()
        except Exception as error:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            msg = f"torch cannot run the model: {text}"
            raise UnsupportedError(msg, hint="Leave the torch runners out.") from error
        return run

    def _filled(self, inputs: Mapping[str, Any], past: int) -> Any:
        """Return a cache of `past` positions."""
        import torch
        import transformers

        batch = len(inputs["input_ids"])
        ids = torch.ones((batch, past), dtype=torch.int64, device=self._device)
        cache = transformers.DynamicCache(config=self._model.config)
        self._model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache
