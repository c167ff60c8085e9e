"""The contract of everything that runs a graph: in ONNX Runtime, in TensorRT, in torch.

open     the constructor of the class, or a function that returns the runner; errors say what is
         wrong with the file, the device or the installation
run      named arrays in, named arrays out; an input that the graph does not have is left out
close    the memory is given back; a runner is a context manager, which closes it

========================  ======================================================================
`OrtSession`              one session of ONNX Runtime (`ondevice.ort.ort_session`)
`TrtRunner`               one engine of TensorRT (`ondevice.trt.trt_runner`)
`LiveEngine`              an engine whose weights are swapped (`ondevice.trt.refit`)
`PresetRunner`            a runner, some of whose inputs are the same in every run: an adapter's
                          tensors, its row in a batched graph (`ondevice.judge.preset_runner`)
`PairRunner`              an encoder and a decoder as one (`ondevice.judge.pair_runner`)
`OrtRunner`, `TrtGraph`   a session or an engine of an export, with an adapter (`runtime`)
`BoundAdapter`            an adapter whose tensors stay on the device (`runtime.swappable`)
`OrtEncoderDecoder`       two sessions, the cache where it is computed (`runtime`)
`TorchRunner`             a model of transformers in torch (`runtime.torch_runner`)
========================  ======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from lora_export.ondevice.device_errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = ["Array", "Axis", "GraphRunner", "Input", "closed_error"]

Array = npt.NDArray[Any]
Axis = str | int
"""A name, or a size."""


@dataclass(frozen=True)
class Input:
    """One input of a graph.

    Attributes:
        name: Its name; of a traced graph that of the argument of ``forward``.
        dtype: Its dtype, by our name (``int64``).
        axes: Its axes.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]

    @property
    def dynamic(self) -> tuple[int, ...]:
        """The positions of the axes whose size is the caller's."""
        return tuple(at for at, axis in enumerate(self.axes) if isinstance(axis, str))


def closed_error(what: str) -> UsageError:
    """Return the error to raise where a runner is run that was closed."""
    return UsageError(f"{what} was closed", hint="Open it again.")


class GraphRunner(Protocol):
    """A graph that is open and can be run.

    Attributes:
        inputs: The names of the inputs that a run needs.
        optional: Inputs that have a default, by name.
        outputs: The names of the outputs, in order.
    """

    inputs: tuple[str, ...]
    optional: Mapping[str, Input]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs, by name, for a value of each input.

        Raises:
            LoraExportError: An input is missing or does not fit, or the runtime fails.
        """

    def close(self) -> None:
        """Free the graph's memory; a later run is refused, a second call does nothing."""

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
