"""A decoder in ONNX Runtime whose cache stays where it is computed.

Keys and values that a step returns are bound as inputs of the next one, as they are: ONNX Runtime
allocates them on its device, and nothing copies them. Only token ids go in and logits come out.

The buffers of a static cache are allocated once. On the CPU they are bound as inputs and as outputs
at once: the one node that reads a buffer is the one that writes it, and where both are the same
memory it copies nothing but the new positions. Elsewhere, where kernels have not been seen to do
so, the outputs are a second set of buffers, and the two change places after each step.

A graph of the form ``ort`` takes a past that is longer than what is in it, and writes behind that.
Its buffers are bound as inputs and outputs at once, on any device: a step copies nothing. They are
as long as the caller expects the text to become, and twice as long whenever it outgrows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from lora_export.core.errors import UnsupportedError
from lora_export.core.graph_forms import FORM_PROPERTY, ORT_FORM
from lora_export.graph.adapters.batched_graph import ADAPTER_IDS
from lora_export.graph.spec.signature import PAST, PRESENT, WRITE_INDICES
from lora_export.ondevice.judge.decoding import Decoder, on_static_cache
from lora_export.ondevice.ort.ort_session import run_error
from lora_export.runtime.ort import ort_value

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from onnxruntime import OrtValue

    from lora_export.runtime.ort import OrtRunner

__all__ = ["OrtDecoder"]

Array = npt.NDArray[Any]

_DTYPES: Final = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_LOGITS: Final = "logits"
_FED: Final = frozenset({"input_ids", "attention_mask", "position_ids", WRITE_INDICES, ADAPTER_IDS})
_RANK: Final = 4
_FIRST_LENGTH: Final = 256
"""The positions that buffers have at first, where nobody says how many are needed."""


class OrtDecoder(Decoder):
    """A session with its cache.

    Args:
        runner: The session of a graph that reads and returns its keys and values.
        device: Where outputs are allocated: ``cpu``, or ``cuda`` for the CUDA provider.
        fixed: Inputs that are the same in every step.
        in_place: Whether a static cache is read and written in the same memory; on the CPU only
            by default.
        length: How many positions a text may have; read of a graph of the form ``ort``.

    Raises:
        UnsupportedError: The graph has no cache, or one of another form than that of
            `lora_export.graph.trace.kv_cache`.
    """

    def __init__(
        self,
        runner: OrtRunner,
        *,
        device: str = "cpu",
        fixed: Mapping[str, OrtValue] | None = None,
        in_place: bool | None = None,
        length: int | None = None,
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
        outputs = [each.name for each in self._session.get_outputs()]
        self._require_known(outputs)
        self._logits = _LOGITS if _LOGITS in outputs else outputs[0]
        self._narrow = runner.narrow
        names = {each.name: each for each in self._session.get_inputs()}
        self._room = names["attention_mask"].shape[1] if WRITE_INDICES in names else None
        self._in_place = device == "cpu" if in_place is None else in_place
        properties = self._session.get_modelmeta().custom_metadata_map
        self._shares = properties.get(FORM_PROPERTY) == ORT_FORM
        self._length = length or _FIRST_LENGTH
        self._written = 0
        self._cache: dict[str, OrtValue] = {}
        self._next: dict[str, OrtValue] = {}

    def _require_known(self, outputs: Collection[str]) -> None:
        """Refuse a graph, made elsewhere, that cannot be run step by step here."""
        for each in self._session.get_inputs():
            if each.name in _FED or each.name in self._fixed:
                continue
            present = PRESENT + each.name.removeprefix(PAST)
            if not each.name.startswith(PAST):
                msg = f"the graph also takes {each.name!r}, which is not fed here"
            elif (
                each.type not in _DTYPES
                or len(each.shape) != _RANK
                or not (isinstance(each.shape[1], int) and isinstance(each.shape[3], int))
            ):
                shape = f"{each.type} {each.shape}"
                msg = f"the cache {each.name!r} is {shape}, not [batch, heads, length, width]"
            elif present not in outputs:
                msg = f"the graph takes {each.name!r} and returns no {present!r}"
            else:
                continue
            raise UnsupportedError(msg, hint="Export the model here: leave --graph out.")

    @property
    def cache_pointers(self) -> tuple[int, ...]:
        """The addresses of the keys and values, in the order of the inputs."""
        return tuple(self._cache[each.name].data_ptr() for each in self._past)

    def start(self, batch: int) -> None:
        """Begin with an empty past for `batch` rows."""
        self._written = 0
        self._cache = self._buffers(batch, self._length if self._shares else self._room or 0)
        if self._shares:
            self._next = self._cache
        if self._room is not None:
            self._next = self._cache if self._in_place else self._buffers(batch, self._room)

    def _buffers(self, batch: int, length: int) -> dict[str, OrtValue]:
        """Return keys and values of zeros, with room for `length` positions."""
        found = {}
        for each in self._past:
            _, heads, _, width = each.shape
            empty = np.zeros((batch, heads, length, width), _DTYPES[each.type])
            found[each.name] = ort_value(empty, self._device)
        return found

    def _make_room(self, batch: int, length: int) -> None:
        """Double the buffers until `length` positions fit; what is written stays."""
        room = self._length
        while room < length:
            room *= 2
        if room == self._length:
            return
        before, self._length = self._cache, room
        self._cache = {}
        for name, value in before.items():
            held = value.numpy()
            _, heads, _, width = held.shape
            longer = np.zeros((batch, heads, room, width), held.dtype)
            longer[:, :, : self._written] = held[:, :, : self._written]
            self._cache[name] = ort_value(longer, self._device)
        self._next = self._cache

    def logits(self, feeds: Mapping[str, Array]) -> Array:
        """Run new positions; return what the graph does of them, ``[batch, n, vocabulary]``.

        Raises:
            ExportDirectoryError: The graph fails on these inputs.
        """
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        new = feeds["input_ids"].shape[1]
        if self._room is not None:
            feeds = on_static_cache(feeds, written=self._written, length=self._room)
        elif self._shares:
            self._make_room(len(feeds["input_ids"]), self._written + new)
        feeds = self._complete(feeds)
        bound = {**self._cache, **self._fixed}
        names = [each.name for each in self._session.get_inputs() if each.name not in bound]
        held = [
            np.ascontiguousarray(feeds[name], np.int32 if name in self._narrow else None)
            for name in names
        ]
        for name, value in zip(names, held, strict=True):  # bound by address: `held` keeps them
            binding.bind_cpu_input(name, value)
        for name, value in self._adapter.items():  # an active adapter would be ignored here
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(value))
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        outputs = [each.name for each in self._session.get_outputs()]
        into = {PRESENT + name.removeprefix(PAST): value for name, value in self._next.items()}
        for name in outputs:
            if name in into:
                binding.bind_ortvalue_output(name, into[name])
            else:
                binding.bind_output(name, "cpu" if name == self._logits else self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise run_error(error) from error
        values = dict(zip(outputs, binding.get_outputs(), strict=True))
        self._written += new
        if self._next:
            self._cache, self._next = self._next, self._cache
        else:
            self._cache = {name: values[PRESENT + name.removeprefix(PAST)] for name in self._cache}
        logits: Array = values[self._logits].numpy()
        return logits
