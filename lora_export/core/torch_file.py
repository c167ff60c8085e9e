"""PyTorch's own files (``.bin``), read without running code from them and without loading them.

``torch.load(weights_only=True)`` under a fake-tensor mode builds tensors that have shapes, strides
and the position of their storage in the file, but no data; the data is then read with ``pread``.
Views whose values do not lie in order (transposed ones) are copied into memory instead.
Files older than the zip format (torch < 1.6) hold no such positions and are loaded whole.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import pickle
import struct
import warnings
from typing import TYPE_CHECKING, Any, Final, cast

from lora_export.core.dtypes import by_name
from lora_export.core.errors import InputError, MissingRuntimeError, UnsupportedError
from lora_export.core.files import refuse_lfs_pointer
from lora_export.core.installation import install_command
from lora_export.core.json_file import is_encodable
from lora_export.core.pickle_skeleton import BoundedReader, Skeleton, count_operations
from lora_export.core.shown_value import first_line
from lora_export.core.supported_versions import require_supported
from lora_export.core.tensors import FileHandle, FileTensor, MemoryTensor, Tensor, is_shape
from lora_export.ondevice.file_opening import open_file, reason_of
from lora_export.ondevice.zip_directory import STORED, is_zip, read_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedReader
    from pathlib import Path
    from typing import BinaryIO

    from lora_export.core.dtypes import DType

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
)
_UNPICKLING: Final = (pickle.UnpicklingError, *_DAMAGED)
_DAMAGED_HINT: Final = "The file is damaged or incomplete: copy it again."
_PICKLES: Final = 4
"""The pickles in front of the data of the older format; the fourth holds the tensors."""

_PICKLE_LIMIT_BYTES: Final = 1 << 22
_MOST_OPERATIONS: Final = 1 << 19
"""The largest pickle that is read: it names some twenty thousand tensors."""

_MOST_REPEATED: Final = 4
"""Views whose values do not lie in order take at most so many times what the file does."""


def read_torch_file(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a ``.bin`` file.

    Raises:
        InputError: The file is missing, damaged, would run code, or is not a table of tensors.
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
    try:
        with open_file(path) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            archive = is_zip(stream)
            if archive:
                _check_archive(stream, path)
            else:
                _check_storages(stream, size_bytes, path)
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Check the path.") from error
    except ValueError as error:
        raise _damaged(path, error) from error
    state = _load(path, fake=archive)
    if not isinstance(state, dict):
        msg = f"{str(path)!r} holds a {type(state).__name__}, not a table of tensors"
        raise InputError(msg, hint="Expected the state_dict of a model.")
    if half := next((name for name in map(str, state) if not is_encodable(name)), None):
        msg = f"{half!r} in {str(path)!r} has half of a character"
        raise InputError(msg, hint="The file is damaged: copy it again.")
    for name, value in state.items():
        _require_plain(name, value, path)
    strided = {name for name, value in state.items() if archive and not value.is_contiguous()}
    repeated_bytes = sum(state[name].numel() * state[name].itemsize for name in strided)
    if repeated_bytes > _MOST_REPEATED * size_bytes:
        msg = f"the tensors in {str(path)!r} take {repeated_bytes} bytes, and the file {size_bytes}"
        raise InputError(msg, hint="Save them contiguously, or as safetensors.")
    handle = FileHandle(path)
    whole = _load(path, fake=False, mmap=True) if strided else {}
    return {
        name: _tensor(
            name,
            whole[name] if name in strided else value,
            path,
            handle if archive and name not in strided else None,
            size_bytes,
        )
        for name, value in state.items()
    }


def _check_archive(stream: BufferedReader, path: Path) -> None:
    """Raise `ValueError` where an archive is not as PyTorch writes it: uncompressed, whole."""
    members = read_directory(stream)
    for name, member in members.items():
        if member.method != STORED:
            msg = f"its member {name[:100]!r} is compressed, which PyTorch's are not"
            raise ValueError(msg)
        if name.endswith(".pkl") and member.size_bytes > _PICKLE_LIMIT_BYTES:
            msg = f"its member {name[:100]!r} has {member.size_bytes} bytes"
            raise ValueError(msg)
        if name.endswith(".pkl"):
            stream.seek(member.start_bytes)
            pickled = stream.read(member.size_bytes)
            _check_operations(pickled, 1)
            try:
                Skeleton(io.BytesIO(pickled), {}).load()
            except _UNPICKLING as error:
                raise _needs_code(path) from error


def _check_operations(data: bytes, pickles: int) -> None:
    if count_operations(data, pickles, _MOST_OPERATIONS) == _MOST_OPERATIONS:
        msg = f"its pickle has {_MOST_OPERATIONS} operations or more"
        raise ValueError(msg)


def _check_storages(stream: BufferedReader, size_bytes: int, path: Path) -> None:
    """Raise where a file of the older format announces more elements than it has bytes.

    Its pickles are read without what they name: nothing is imported, called or allocated.
    """
    _check_operations(stream.read(_PICKLE_LIMIT_BYTES), _PICKLES)
    stream.seek(0)
    pickles = cast("BinaryIO", BoundedReader(stream, min(size_bytes, _PICKLE_LIMIT_BYTES)))
    announced: dict[str, int] = {}
    try:
        for _ in range(_PICKLES):
            Skeleton(pickles, announced).load()
    except _UNPICKLING as error:
        raise _needs_code(path) from error
    if sum(announced.values()) > size_bytes:
        msg = f"it announces {sum(announced.values())} elements in {size_bytes} bytes"
        raise ValueError(msg)


def _require_plain(name: object, value: Any, path: Path) -> None:
    """Require that an entry is a dense tensor under a name."""
    import torch

    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        msg = f"{str(name)[:100]!r} in {str(path)!r} is a {type(value).__name__}, not a tensor"
        raise InputError(msg, hint="Expected the state_dict of a model.")
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        msg = f"{name[:100]!r} in {str(path)!r} is a sparse, nested or quantized tensor"
        raise UnsupportedError(msg, hint="Save plain tensors: safetensors.")
    if not is_shape(value.shape):
        msg = f"{name[:100]!r} in {str(path)!r} has the shape {list(value.shape)}"
        raise InputError(msg, hint=_DAMAGED_HINT)


def _load(path: Path, *, fake: bool, mmap: bool = False) -> Any:
    import torch

    from lora_export.core.torch_private import FakeTensorMode

    mode: contextlib.AbstractContextManager[object] = (
        FakeTensorMode() if fake else contextlib.nullcontext()
    )
    try:
        with warnings.catch_warnings(), mode:
            warnings.simplefilter("ignore")  # about pickle protocols other than torch's own
            if not fake and not mmap:
                with open_file(path) as stream:
                    bounded: Any = BoundedReader(stream, os.fstat(stream.fileno()).st_size)
                    return torch.load(bounded, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise _needs_code(path) from error
    except _DAMAGED as error:
        raise _damaged(path, error) from error


def _needs_code(path: Path) -> InputError:
    msg = f"{str(path)!r} cannot be read without running code from it, or is damaged"
    return InputError(
        msg, hint="Do not load it elsewhere unless you trust its author; ask for safetensors."
    )


def _damaged(path: Path, error: BaseException) -> InputError:
    msg = f"{str(path)!r} is not a readable PyTorch file: {first_line(error)}"
    return InputError(msg, hint=_DAMAGED_HINT)


def _tensor(
    name: str,
    value: Any,
    path: Path,
    handle: FileHandle | None,
    size_bytes: int,
) -> Tensor:
    from lora_export.core.torch_private import checkpoint_offset

    dtype = by_name(str(value.dtype))
    if handle is None:
        return MemoryTensor(name, dtype, _in_memory(value, dtype))
    start = checkpoint_offset(value)
    if start is None:
        msg = f"tensor {name!r} in {str(path)!r} has no place in the file"
        raise InputError(msg, hint="Save the weights as safetensors.")
    start += int(value.storage_offset()) * dtype.itemsize_bytes
    if start < 0 or start + value.numel() * dtype.itemsize_bytes > size_bytes:
        msg = f"tensor {name!r} passes the end of {str(path)!r}"
        raise InputError(msg, hint=_DAMAGED_HINT)
    return FileTensor(name, dtype, tuple(value.shape), handle, start)


def _in_memory(value: Any, dtype: DType) -> Any:
    import torch

    raw = value.detach().contiguous().view(torch.uint8) if value.ndim else value.detach()
    return raw.numpy().view(dtype.numpy).reshape(tuple(value.shape))
