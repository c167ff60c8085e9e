"""A graph whose inputs and outputs stay on its device, so that timings contain no copies.

Inputs are put on the provider's device once. Outputs are bound to it and written to the same place
by every run, so that nothing is allocated and nothing is copied back; a run ends when the device
is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.ondevice.ort.ort_session import run_error
from lora_export.runtime.ort import device_of, ort_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    import onnxruntime

__all__ = ["BoundRun"]


class BoundRun:
    """A session with one set of inputs bound; calling it runs the graph once.

    Args:
        session: The session.
        provider: Its execution provider, by its full name.
        feeds: A value for each input, and for optional ones that differ from their defaults.
        values: Values that are on the device already, such as another graph's outputs.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        provider: str,
        feeds: Mapping[str, npt.NDArray[Any]],
        *,
        values: Mapping[str, onnxruntime.OrtValue] | None = None,
    ) -> None:
        device = device_of(provider)
        self._session = session
        self._wait = device != "cpu"
        self._held = {name: ort_value(each, device) for name, each in feeds.items()}
        self._held |= values or {}
        self._arrays = dict(feeds)  # on the CPU, values are bound by address
        self._binding = session.io_binding()
        for name, value in self._held.items():
            self._binding.bind_ortvalue_input(name, value)
        for node in session.get_outputs():
            self._binding.bind_output(node.name, device)

    def __call__(self) -> None:
        """Run the graph, and wait until its outputs are there.

        Raises:
            ExportDirectoryError: The graph cannot be run on these inputs.
        """
        try:
            self._session.run_with_iobinding(self._binding)
            if self._wait:
                self._binding.synchronize_outputs()
        except Exception as error:
            raise run_error(error) from error

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of the last run, copied to the CPU."""
        return {name: value.numpy().copy() for name, value in self.values().items()}

    def values(self) -> dict[str, onnxruntime.OrtValue]:
        """Return the outputs of the last run where they are; the next run writes them anew."""
        names = [node.name for node in self._session.get_outputs()]
        return dict(zip(names, self._binding.get_outputs(), strict=True))
