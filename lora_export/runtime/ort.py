"""ONNX Runtime: a graph that can be run. Its errors are translated here and nowhere else."""

from __future__ import annotations

import copy
import importlib.util
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import (
    ExportDirectoryError,
    LoraExportError,
    MissingRuntimeError,
    UnsupportedError,
    UsageError,
)
from lora_export.graph.spec.signature import Input
from lora_export.ondevice.bundle.ort_runner import crashing_optimizers, require_new_enough

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt
    import onnxruntime

__all__ = [
    "CPU",
    "PROVIDERS",
    "OrtRunner",
    "device_of",
    "failed",
    "open_session",
    "optional_inputs",
    "ort_value",
    "require_onnxruntime",
    "require_provider",
]

_QUIET: Final = 3

_OUTSIDE: Final = re.compile(r"out of data bounds, idx=(-?\d+) .*\[-?\d+,(-?\d+)\]")
"""What the kernel of ``Gather`` says."""

CPU: Final = "CPUExecutionProvider"

PROVIDERS: Final[dict[str, str]] = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Execution providers by their short names."""

_DEVICES: Final = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
_WORDS: Final = {"float": "float32", "double": "float64"}
"""What ONNX Runtime calls dtypes, where that is not our name."""
_UNNAMED: Final = {
    np.dtype(row.numpy): row.onnx for row in DTYPES.values() if row.numpy.kind == "V"
}
"""Dtypes that NumPy itself does not have, by the number that ONNX gives them."""


def require_onnxruntime() -> None:
    """Raise `MissingRuntimeError` where ONNX Runtime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        msg = "verification runs the graph in ONNX Runtime, which is not installed"
        raise MissingRuntimeError(
            msg,
            hint="Install lora-export[cpu] or lora-export[gpu]; a build goes without: --no-verify",
        )


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
            hint=f"It has: {', '.join(known)}. For NVIDIA GPUs install lora-export[gpu] "
            "in place of lora-export[cpu].",
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


def optional_inputs(session: onnxruntime.InferenceSession) -> dict[str, Input]:
    """Return the inputs of a graph that have a default, by name."""
    found = {}
    for node in session.get_overridable_initializers():
        word = node.type.removeprefix("tensor(").removesuffix(")")
        found[node.name] = Input(node.name, _WORDS.get(word, word), tuple(node.shape))
    return found


def failed(error: Exception) -> LoraExportError:
    """Return what a run raises whose inputs ONNX Runtime, or a kernel of it, refuses."""
    text = (str(error).splitlines() or [""])[0]
    if found := _OUTSIDE.search(text):
        msg = f"an input holds or leads to the index {found[1]}, and a table of the model ends at "
        hint = "A token is not in the vocabulary, or a text is longer than the model has positions."
        return UsageError(f"{msg}{found[2]}", hint=hint)
    msg = f"the graph failed in ONNX Runtime: {text}"
    return ExportDirectoryError(msg, hint="Report this with --debug.")


def open_session(
    path: Path,
    *,
    provider: str = CPU,
    threads: int = 0,
    initializers: Mapping[str, npt.NDArray[Any]] | None = None,
    prepack: bool = True,
) -> onnxruntime.InferenceSession:
    """Open a graph; its threads rest between runs, so that sessions do not slow each other.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        provider: The execution provider, by its full name.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        initializers: Values that take the place of those in the weight files, of the same shapes
            and dtypes. ONNX Runtime copies or repacks them while it opens the graph (tried up to
            1.32), and does not look at them afterwards.
        prepack: Whether constant weights are packed, which may change the order of sums.

    Raises:
        ExportDirectoryError: The graph or its weights are damaged or missing.
        UnsupportedError: The provider has no kernel for something in the graph.
        MissingRuntimeError: ONNX Runtime is not installed or older than the graph, or the provider
            does not start.
    """
    require_onnxruntime()
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    held = [ort_value(values) for values in (initializers or {}).values()]
    try:
        if held:
            options.add_external_initializers(list(initializers or ()), held)
        session = onnxruntime.InferenceSession(
            str(path),
            sess_options=options,
            providers=[provider],
            disabled_optimizers=crashing_optimizers(onnxruntime.__version__),
        )
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        require_new_enough(text, str(path))
        if "NOT_IMPLEMENTED" in text or "NotImplemented" in type(error).__name__:
            msg = f"{provider} cannot run {path.name!r}: {text}"
            raise UnsupportedError(msg, hint="Choose another target or dtype.") from error
        msg = f"ONNX Runtime cannot open {str(path)!r}: {text}"
        raise ExportDirectoryError(msg, hint="The export is damaged; export again.") from error
    started = session.get_providers()
    if provider not in started:  # ONNX Runtime goes on without it, slowly
        msg = f"{provider} did not start; ONNX Runtime offers {', '.join(started)} instead"
        raise MissingRuntimeError(msg, hint="See what its libraries lack: lora-export doctor")
    return session


class OrtRunner:
    """One session of one graph.

    `session` is ONNX Runtime's, for those who bind its inputs; `optional` names the inputs that
    have a default.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        provider: The execution provider.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        initializers: Values in place of those in the weight files; see `open_session`.
        adapter: Values of optional inputs, for every run.
        prepack: Whether constant weights are packed, which may change the order of sums.

    Raises:
        LoraExportError: See `open_session`.
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
    ) -> None:
        self.session = open_session(
            path, provider=provider, threads=threads, initializers=initializers, prepack=prepack
        )
        self.adapter = dict(adapter or {})
        self.inputs = tuple(node.name for node in self.session.get_inputs())
        self._narrow = {n.name for n in self.session.get_inputs() if n.type == "tensor(int32)"}
        self.optional = optional_inputs(self.session)
        self.outputs = tuple(node.name for node in self.session.get_outputs())

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Run the graph once; inputs that it does not have are left out, int32 ones narrowed.

        Raises:
            ExportDirectoryError: The graph cannot be run on these inputs.
        """
        wanted = {
            name: feeds[name].astype("int32") if name in self._narrow else feeds[name]
            for name in (*self.inputs, *(name for name in self.optional if name in feeds))
        }
        try:
            values = self.session.run(None, wanted | self.adapter)
        except Exception as error:
            raise failed(error) from error
        return dict(zip(self.outputs, values, strict=True))

    def complete(self, feeds: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """Return the feeds with what the graph reads beside them: nothing; see `RowRunner`."""
        return feeds

    def with_adapter(self, adapter: Mapping[str, npt.NDArray[Any]]) -> OrtRunner:
        """Return a runner of the same session with other values of the optional inputs."""
        other = copy.copy(self)
        other.adapter = dict(adapter)
        return other
