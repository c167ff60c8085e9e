"""PyTorch's own files (``.bin``), read without running code from them and without loading them.

``torch.load(weights_only=True)`` under a fake-tensor mode builds tensors that have shapes, strides
and the position of their storage in the file, but no data; the data is then read with ``pread``.
Views whose values do not lie in order (transposed ones) are copied into memory instead.
Files older than the zip format (torch < 1.6) hold no such positions and are loaded whole.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.dtypes import by_name
from lora_export.core.errors import InputError, MissingRuntimeError
from lora_export.core.files import refuse_lfs_pointer
from lora_export.core.installation import install_command
from lora_export.core.supported_versions import require_supported
from lora_export.core.tensors import FileHandle, FileTensor, MemoryTensor, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["read_torch_file"]

_DAMAGED: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
)


def read_torch_file(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a ``.bin`` file.

    Raises:
        InputError: The file is missing, damaged, would run code, or is no table of tensors.
        MissingRuntimeError: torch is not installed, or is too old.
    """
    if importlib.util.find_spec("torch") is None:
        msg = f"{str(path)!r} is a pickle of PyTorch, and torch is not installed"
        raise MissingRuntimeError(
            msg,
            hint=f"Install it {install_command('export')}; or save the weights as safetensors.",
        )
    require_supported("torch")
    refuse_lfs_pointer(path)
    is_zip = zipfile.is_zipfile(path)
    state = _load(path, fake=is_zip)
    if not isinstance(state, dict):
        msg = f"{str(path)!r} holds a {type(state).__name__}, not a table of tensors"
        raise InputError(msg, hint="Expected the state_dict of a model.")
    handle = FileHandle(path)
    size_bytes = path.stat().st_size
    strided = {name for name, value in state.items() if is_zip and _is_strided(value)}
    whole = _load(path, fake=False, mmap=True) if strided else {}
    return {
        str(name): _tensor(
            str(name),
            whole[name] if name in strided else value,
            path,
            handle if is_zip and name not in strided else None,
            size_bytes,
        )
        for name, value in state.items()
    }


def _is_strided(value: Any) -> bool:
    """Whether a tensor is a view whose values do not lie in order, such as a transposed one."""
    import torch

    return isinstance(value, torch.Tensor) and not value.is_contiguous()


def _load(path: Path, *, fake: bool, mmap: bool = False) -> Any:
    import torch

    from lora_export.core.torch_private import FakeTensorMode

    mode: contextlib.AbstractContextManager[object] = (
        FakeTensorMode() if fake else contextlib.nullcontext()
    )
    try:
        with warnings.catch_warnings(), mode:
            warnings.simplefilter("ignore")  # about pickle protocols other than torch's own
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        msg = f"{str(path)!r} cannot be read without running code from it, or is damaged"
        raise InputError(
            msg,
            hint="Do not load it elsewhere unless you trust its author; ask for safetensors.",
        ) from error
    except _DAMAGED as error:
        msg = f"{str(path)!r} is not a readable PyTorch file: {_first_line(error)}"
        raise InputError(msg, hint="The file is damaged or incomplete: copy it again.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _tensor(
    name: str,
    value: Any,
    path: Path,
    handle: FileHandle | None,
    size_bytes: int,
) -> Tensor:
    import torch

    from lora_export.core.torch_private import checkpoint_offset

    if not isinstance(value, torch.Tensor):
        msg = f"{name!r} in {str(path)!r} is a {type(value).__name__}, not a tensor"
        raise InputError(msg, hint="Expected the state_dict of a model.")
    dtype = by_name(str(value.dtype))
    if handle is None:
        raw = value.detach().contiguous().view(torch.uint8) if value.ndim else value.detach()
        array = raw.numpy().view(dtype.numpy).reshape(tuple(value.shape))
        return MemoryTensor(name, dtype, array)
    start = checkpoint_offset(value)
    if start is None:
        msg = f"tensor {name!r} in {str(path)!r} has no place in the file"
        raise InputError(msg, hint="Save the weights as safetensors.")
    start += int(value.storage_offset()) * dtype.itemsize_bytes
    if start < 0 or start + value.numel() * dtype.itemsize_bytes > size_bytes:
        msg = f"tensor {name!r} passes the end of {str(path)!r}"
        raise InputError(msg, hint="The file is damaged or incomplete: copy it again.")
    return FileTensor(name, dtype, tuple(value.shape), handle, start)
