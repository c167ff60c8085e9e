"""ONNX Runtime: a graph that can be run. Its errors are translated here and nowhere else."""

from __future__ import annotations

import copy
import importlib.util
from typing import TYPE_CHECKING, Any

from lora_export.base.errors import ExportDirectoryError, MissingRuntimeError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

__all__ = ["OrtRunner", "require_onnxruntime"]

_QUIET = 3


def require_onnxruntime() -> None:
    """Raise `MissingRuntimeError` where ONNX Runtime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        msg = "verification runs the graph in ONNX Runtime, which is not installed"
        raise MissingRuntimeError(
            msg,
            hint="Install lora-export[cpu] or lora-export[gpu]; a build goes without: --no-verify",
        )


class OrtRunner:
    """One session of one graph; its threads rest between runs, so that sessions can be compared.

    `session` is ONNX Runtime's, for those who bind its inputs.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.
        provider: The execution provider.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        adapter: Values of optional inputs, for every run.
        prepack: Whether constant weights are packed, which may change the order of sums.

    Raises:
        ExportDirectoryError: The graph or its weights are damaged or missing.
        UnsupportedError: The provider has no kernel for something in the graph.
        MissingRuntimeError: ONNX Runtime is not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str = "CPUExecutionProvider",
        threads: int = 0,
        adapter: Mapping[str, npt.NDArray[Any]] | None = None,
        prepack: bool = True,
    ) -> None:
        require_onnxruntime()
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=[provider]
            )
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            if "NOT_IMPLEMENTED" in text or "NotImplemented" in type(error).__name__:
                msg = f"{provider} cannot run {path.name!r}: {text}"
                raise UnsupportedError(msg, hint="Choose another target or dtype.") from error
            msg = f"ONNX Runtime cannot open {str(path)!r}: {text}"
            raise ExportDirectoryError(msg, hint="The export is damaged; export again.") from error
        self.adapter = dict(adapter or {})
        self.inputs = tuple(node.name for node in self.session.get_inputs())
        self._narrow = {n.name for n in self.session.get_inputs() if n.type == "tensor(int32)"}
        self.outputs = tuple(node.name for node in self.session.get_outputs())

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.generic]]:
        """Run the graph once; inputs that it does not have are left out, int32 ones narrowed.

        Raises:
            ExportDirectoryError: The graph cannot be run on these inputs.
        """
        wanted = {
            name: feeds[name].astype("int32") if name in self._narrow else feeds[name]
            for name in self.inputs
        }
        try:
            values = self.session.run(None, wanted | self.adapter)
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            msg = f"the graph failed in ONNX Runtime: {text}"
            raise ExportDirectoryError(msg, hint="Report this with --debug.") from error
        return dict(zip(self.outputs, values, strict=True))

    def with_adapter(self, adapter: Mapping[str, npt.NDArray[Any]]) -> OrtRunner:
        """Return a runner of the same session with other values of the optional inputs."""
        other = copy.copy(self)
        other.adapter = dict(adapter)
        return other
