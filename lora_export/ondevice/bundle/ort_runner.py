"""A graph in ONNX Runtime, for devices without TensorRT."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.ondevice.device_errors import InputError, MissingRuntimeError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["OrtGraph", "crashing_optimizers", "onnxruntime_version", "require_new_enough"]

_ERRORS_ONLY: Final = 3
_PROVIDER: Final = "CPUExecutionProvider"
_FUSING: Final = "FuseFp16InitializerToFp32NodeTransformer"
_FUSING_CRASHES: Final = ((1, 23), (1, 30))
"""From the first of these versions up to the second."""

_TOO_NEW: Final = re.compile(r"Unsupported model IR version|Opset \d+ is under development")
"""What an ONNX Runtime says that is older than a graph."""


def onnxruntime_version() -> str:
    """Return the version of ONNX Runtime.

    Raises:
        MissingRuntimeError: It is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except Exception as error:  # a broken installation raises what it likes
        msg = f"ONNX Runtime cannot be imported: {error}"
        raise MissingRuntimeError(msg, hint="Install it: pip install onnxruntime") from error
    version: str = onnxruntime.__version__
    return version


def crashing_optimizers(version: str) -> list[str]:
    """Return the graph optimizers that a version of ONNX Runtime has to go without.

    Of 1.23 to 1.29 the one that widens float16 initializers ends the process on those that are
    inputs too, as a swappable graph has them (microsoft/onnxruntime, pull request 32143).
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    number = (int(found[1]), int(found[2])) if found else (0, 0)
    first, fixed = _FUSING_CRASHES
    return [_FUSING] if first <= number < fixed else []


def require_new_enough(said: str, graph: str) -> None:
    """Require that it is not its age for which ONNX Runtime refused a graph.

    Args:
        said: What it said.
        graph: The graph's file.

    Raises:
        MissingRuntimeError: It is older than the graph.
    """
    if _TOO_NEW.search(said):
        msg = f"ONNX Runtime {onnxruntime_version()} is too old for {graph!r}: {said}"
        hint = "Install a newer one: pip install -U onnxruntime (--no-deps leaves NumPy as it is)"
        raise MissingRuntimeError(msg, hint=hint)


class OrtGraph:
    """One session on the CPU.

    Args:
        path: The ``.onnx`` file; its weights lie beside it.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed, or is older than the graph.
        InputError: The graph or its weights cannot be opened.
        UnsupportedError: ONNX Runtime has no kernel for something in the graph.
    """

    def __init__(self, path: Path) -> None:
        version = onnxruntime_version()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path),
                sess_options=options,
                providers=[_PROVIDER],
                disabled_optimizers=crashing_optimizers(version),
            )
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            require_new_enough(text, path.name)
            msg = f"ONNX Runtime cannot open {path.name!r}: {text}"
            if "NOT_IMPLEMENTED" in text or "NotImplemented" in type(error).__name__:
                raise UnsupportedError(msg, hint="Check the bundle on its target.") from error
            raise InputError(msg, hint="Copy the bundle again.") from error
        self._path = path
        inputs = self._session.get_inputs()
        self._needed = tuple(each.name for each in inputs)
        self._narrow = {each.name for each in inputs if each.type == "tensor(int32)"}
        self._optional = tuple(e.name for e in self._session.get_overridable_initializers())
        self._outputs = tuple(each.name for each in self._session.get_outputs())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once; what it does not read is left out, and int64 narrowed where it is.

        Raises:
            InputError: An input is missing, or the graph cannot be run on these.
        """
        wanted = {}
        for name in (*self._needed, *(each for each in self._optional if each in feeds)):
            if name not in feeds:
                msg = f"{self._path.name!r} reads {name!r}, which is not given"
                raise InputError(msg, hint="Pack the bundle again.")
            wanted[name] = feeds[name].astype("int32") if name in self._narrow else feeds[name]
        try:
            values = self._session.run(None, wanted)
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            msg = f"{self._path.name!r} failed in ONNX Runtime: {text}"
            raise InputError(msg, hint="Report this with the whole output.") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Give the session's memory back."""
        self._session = None
