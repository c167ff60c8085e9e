"""ONNX Runtime's ``.onnx_adapter``: named tensors for the optional inputs of a graph.

Of the base that it is for, the file has room for 31 bits, its ``model_version``: the low bits of
the base's fingerprint. ONNX Runtime does not look at them.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import AdapterError, MissingRuntimeError, UnsupportedError
from lora_export.core.installation import install_command
from lora_export.core.supported_versions import require_supported
from lora_export.ondevice.file_opening import require_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.tensors import MemoryTensor

__all__ = ["SUFFIX", "model_version_of", "read_onnx_adapter", "write_onnx_adapter"]

SUFFIX: Final = ".onnx_adapter"

_NO_BASE: Final = 1
"""The model version of a pack whose base is not known."""

_DTYPES = frozenset({"float32", "float16"})


def write_onnx_adapter(
    path: Path, tensors: Mapping[str, MemoryTensor], fingerprint: str | None = None
) -> None:
    """Write `tensors` into a private folder as an ``.onnx_adapter`` of version 1.

    Its model version is that of the base's `fingerprint` (see `model_version_of`), or 1.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed, or is too old.
        UnsupportedError: A tensor has a dtype that cannot be handed over.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        msg = "an .onnx_adapter is written by ONNX Runtime, which is not installed"
        hint = f"Install it {install_command('cpu')}; or choose --to peft."
        raise MissingRuntimeError(msg, hint=hint)
    require_supported("onnxruntime", "onnxruntime-gpu")
    import onnxruntime

    for tensor in tensors.values():
        if tensor.dtype.name not in _DTYPES:
            msg = f"an .onnx_adapter cannot be written in {tensor.dtype.name}"
            raise UnsupportedError(msg, hint="Use --dtype float32 or --dtype float16.")
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(_NO_BASE if fingerprint is None else model_version_of(fingerprint))
    file.set_parameters(
        {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(tensors[name].values)
            for name in sorted(tensors)
        }
    )
    file.export_adapter(str(path))


def model_version_of(fingerprint: str) -> int:
    """Return the model version in a pack: the low 31 bits of the base's fingerprint."""
    return int(fingerprint, 16) & 0x7FFFFFFF


def read_onnx_adapter(path: Path, fingerprint: str) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors of an ``.onnx_adapter`` that was made for a base.

    Raises:
        AdapterError: It is damaged, holds NaN or infinity, or is for another base.
        MissingRuntimeError: ONNX Runtime is not installed, or is too old.
    """
    import onnxruntime

    if not hasattr(onnxruntime, "AdapterFormat"):
        msg = f"onnxruntime {onnxruntime.__version__} cannot read an .onnx_adapter"
        raise MissingRuntimeError(msg, hint="Install onnxruntime 1.20 or newer.")
    try:
        require_file(path)
        file = onnxruntime.AdapterFormat.read_adapter(str(path.absolute()))
        version = file.get_model_version()
        tensors = {name: np.array(value.numpy()) for name, value in file.get_parameters().items()}
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        msg = f"cannot read the adapter {str(path)!r}: {text}"
        raise AdapterError(msg, hint="Copy it again, or make it anew.") from error
    wanted = model_version_of(fingerprint)
    if version != wanted:
        msg = f"{str(path)!r} is for a base of model version {version}, the export's has {wanted}"
        if version == _NO_BASE:
            msg = f"{str(path)!r} does not say which base it is for"
        hint = (
            "Make one for this export: lora-export adapter convert ADAPTER --to onnx_adapter "
            f"--export EXPORT --out NAME{SUFFIX}"
        )
        raise AdapterError(msg, hint=hint)
    for name, each in tensors.items():
        if each.dtype.kind == "f" and not bool(np.isfinite(each).all()):
            msg = f"tensor {name!r} of the adapter {str(path)!r} holds NaN or infinity"
            raise AdapterError(msg, hint="Its training diverged, or the file is damaged.")
    return tensors
