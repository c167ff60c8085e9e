"""ONNX Runtime on the host: a graph of an export with values of its own, an adapter, or a row.

Sessions are opened and run in `lora_export.ondevice.ort`, on devices too. What is added here is
what an export knows: dtypes that NumPy does not have, merged weights handed over, adapters.
"""

from __future__ import annotations

import copy
import importlib.util
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import ExportDirectoryError, MissingRuntimeError
from lora_export.core.installation import install_command
from lora_export.core.supported_versions import require_supported
from lora_export.ondevice.graph_runner import GraphRunner
from lora_export.ondevice.judge.preset_runner import PresetRunner
from lora_export.ondevice.ort.ort_session import CPU, OrtSession

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnxruntime

    from lora_export.ondevice.graph_runner import Array

__all__ = [
    "CPU",
    "PROVIDERS",
    "OrtRunner",
    "device_of",
    "open_session",
    "ort_value",
    "require_onnxruntime",
    "require_provider",
]

PROVIDERS: Final[dict[str, str]] = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Execution providers by their short names."""

_DEVICES: Final = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
_UNNAMED: Final = {
    np.dtype(row.numpy): row.onnx for row in DTYPES.values() if row.numpy.kind == "V"
}
"""Dtypes that NumPy itself does not have, by the number that ONNX gives them."""


def require_onnxruntime() -> None:
    """Raise `MissingRuntimeError` where ONNX Runtime is not installed, or is too old."""
    if importlib.util.find_spec("onnxruntime") is None:
        msg = "verification runs the graph in ONNX Runtime, which is not installed"
        raise MissingRuntimeError(
            msg,
            hint=f"Install it {install_command('cpu')}, or '.[gpu]'; or build without it: "
            "--no-verify",
        )
    require_supported("onnxruntime", "onnxruntime-gpu")


def require_provider(provider: str) -> str:
    """Return the full name of a provider (``cuda``, ``CUDAExecutionProvider``) that is installed.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed, or has no such provider.
    """
    require_onnxruntime()
    import onnxruntime

    name = PROVIDERS.get(provider, provider)
    known = onnxruntime.get_available_providers()
    if name not in known:
        msg = f"onnxruntime {onnxruntime.__version__} has no provider {provider!r}"
        raise MissingRuntimeError(
            msg,
            hint=f"It has: {', '.join(known)}. For NVIDIA GPUs uninstall onnxruntime, then "
            f"install the extra gpu {install_command('gpu')}",
        )
    return name


def device_of(provider: str) -> str:
    """Return where a provider reads its inputs without a copy: ``cpu`` or ``cuda``."""
    return _DEVICES.get(provider, "cpu")


def ort_value(values: npt.NDArray[Any], device: str = "cpu") -> onnxruntime.OrtValue:
    """Return `values` as ONNX Runtime takes them: in place on ``cpu``, else copied to `device`.

    On ``cpu`` the returned object has to live as long as its use.
    """
    import onnxruntime

    values = np.ascontiguousarray(values)
    if (onnx_type := _UNNAMED.get(values.dtype)) is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(values, device)
    raw = values.view(np.dtype(f"u{values.dtype.itemsize}"))
    held = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, onnx_type)
    if device == "cpu":
        return held
    moved = onnxruntime.OrtValue.ortvalue_from_shape_and_type(values.shape, onnx_type, device)
    moved.update_inplace(raw)
    return moved


def open_session(path: Path, **options: Any) -> onnxruntime.InferenceSession:
    """Return ONNX Runtime's session of a graph, for those who bind its inputs.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        options: See `OrtRunner`.

    Raises:
        LoraExportError: See `OrtSession`.
    """
    return OrtRunner(path, **options).session


class OrtRunner(GraphRunner):
    """One session of one graph, with an adapter where the graph takes one.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        provider: The execution provider, by its full name.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        initializers: Values in place of those in the weight files; see `OrtSession`.
        adapter: Values of optional inputs, for every run.
        prepack: Whether constant weights are packed, which may change the order of sums.
        exact: Whether products with quantized weights are computed in the graph's own dtype.

    Attributes:
        preset: The session with what it is given in every run: the adapter, or its row.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed.
        LoraExportError: See `OrtSession`.
        ExportDirectoryError: The graph has no input of that name in `adapter`.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str = CPU,
        threads: int = 0,
        initializers: Mapping[str, npt.NDArray[Any]] | None = None,
        adapter: Mapping[str, npt.NDArray[Any]] | None = None,
        prepack: bool = True,
        exact: bool = False,
    ) -> None:
        require_onnxruntime()
        self._opened = OrtSession(
            path,
            provider=provider,
            threads=threads,
            initializers={name: ort_value(each) for name, each in (initializers or {}).items()},
            prepack=prepack,
            exact=exact,
        )
        self.preset = self._checked(PresetRunner(self._opened, adapter))
        self.inputs, self.optional = self.preset.inputs, self.preset.optional
        self.outputs = self.preset.outputs

    def _checked(self, preset: PresetRunner) -> PresetRunner:
        known = {*self._opened.inputs, *self._opened.optional}
        if unknown := sorted(preset.added - known):
            msg = f"the graph {self._opened.path.name!r} has no input {unknown[0]!r}"
            raise ExportDirectoryError(msg, hint="Graph and adapter are not of one export.")
        return preset

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """ONNX Runtime's session, for those who bind its inputs."""
        return self._opened.session

    @property
    def shares_cache(self) -> bool:
        """Whether a cache with room is written in place."""
        return self._opened.shares_cache

    @property
    def narrow(self) -> frozenset[str]:
        """The inputs that are int32."""
        return self._opened.narrow

    @property
    def adapter(self) -> Mapping[str, Array]:
        """Values of optional inputs, for every run."""
        return self.preset.values

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; inputs that it does not have are left out, int32 ones narrowed.

        Raises:
            LoraExportError: See `OrtSession.run`.
        """
        return self.preset.run(feeds)

    def complete(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return `feeds` with what the session is given besides; see `PresetRunner`."""
        return self.preset.complete(feeds)

    def with_adapter(self, adapter: Mapping[str, Array]) -> OrtRunner:
        """Return a runner of the same session with other values of the optional inputs."""
        return self._copy(PresetRunner(self._opened, adapter))

    def with_row(self, row: int, width: int | None) -> OrtRunner:
        """Return a runner of the same session, a batched graph's, for one adapter.

        Args:
            row: The adapter's row in the stacks; 0 is the base.
            width: How many of the logits the adapter has; None for all.
        """
        return self._copy(PresetRunner(self._opened, row=row, width=width))

    def _copy(self, preset: PresetRunner) -> OrtRunner:
        other = copy.copy(self)
        other.preset = self._checked(preset)
        other.inputs, other.optional = preset.inputs, preset.optional
        return other

    def close(self) -> None:
        """Free the session's memory, also for other runners of the session."""
        self._opened.close()
