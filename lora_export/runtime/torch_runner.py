"""A model in torch, eager or compiled: run on arrays, or timed on inputs that lie on its device."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_export.core.errors import UnsupportedError
from lora_export.ondevice.graph_runner import GraphRunner, closed_error
from lora_export.ondevice.judge.decoding import PAST, without_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from lora_export.ondevice.graph_runner import Array, Input

__all__ = ["TorchRunner", "quiet"]


class TorchRunner(GraphRunner):
    """A module of transformers, called as a graph is run; of a decoder, without a cache.

    Args:
        module: The module; moved to `device`.
        inputs: Arguments of its ``forward`` that it needs.
        outputs: The fields of its output that are returned.
        device: ``cpu`` or ``cuda``.
        compiled: Whether ``torch.compile`` has it.
        threads: Of torch's operators on the CPU; 0 leaves the choice to torch.

    Attributes:
        module: The module.
    """

    def __init__(
        self,
        module: Any,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        device: str = "cpu",
        compiled: bool = False,
        threads: int = 0,
    ) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._device = device
        self.module = module.to(device)
        self._call = torch.compile(self.module) if compiled else self.module
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.optional: Mapping[str, Input] = {}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for `feeds`, float32; keys and values of a cache are left out.

        Raises:
            UsageError: The model was closed.
        """
        import torch

        if self.module is None:
            raise closed_error("the model in torch")
        inputs = self._tensors(without_cache(feeds))
        with torch.inference_mode(), quiet():
            output = self._call(**inputs, return_dict=True)
        return {name: output[name].float().cpu().numpy() for name in self.outputs}

    def bound(self, feeds: Mapping[str, Array], *, past: int = 0) -> Callable[[], object]:
        """Return one run of the model on `feeds`; of a decoder, after `past` positions.

        The run ends when the device is done; nothing is copied back. A decoder's cache grows by
        what a run adds, and is cut back at its end.

        Raises:
            UnsupportedError: torch cannot run the model on these inputs.
        """
        import torch

        inputs = self._tensors({n: each for n, each in feeds.items() if not n.startswith(PAST)})
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

    def _tensors(self, feeds: Mapping[str, Array]) -> dict[str, torch.Tensor]:
        import torch

        return {
            name: torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
            for name, values in feeds.items()
        }

    def _filled(self, inputs: Mapping[str, Any], past: int) -> Any:
        """Return a cache of `past` positions."""
        import torch
        import transformers

        batch = len(inputs["input_ids"])
        ids = torch.ones((batch, past), dtype=torch.int64, device=self._device)
        cache = transformers.DynamicCache(config=self.module.config)
        self.module(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def close(self) -> None:
        """Free the model's memory."""
        self.module = self._call = None
        gc.collect()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence notices about new heads and missing keys: the reference checks them itself."""
    if importlib.util.find_spec("transformers"):
        import transformers

        transformers.utils.logging.disable_progress_bar()
    names = ("transformers", "peft", "accelerate")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
