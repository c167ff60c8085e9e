"""Triton's model configuration as protobuf, and its text; the one owner of ``tritonclient``."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import ExportDirectoryError, MissingRuntimeError
from lora_export.core.installation import install_command
from lora_export.ondevice.file_opening import read_file, reason_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONFIG_NAME", "config_text", "data_type_name", "new_config", "parse_config", "schema"]

CONFIG_NAME: Final = "config.pbtxt"
_LIMIT_BYTES: Final = 1 << 22
_HOW_TO_GET: Final = f"Install it {install_command('triton')}"


def schema() -> Any:
    """Return the module of Triton's messages.

    Raises:
        MissingRuntimeError: tritonclient or its protobuf is not installed.
    """
    if importlib.util.find_spec("tritonclient") is None:
        msg = "model repositories are written with tritonclient, which is not installed"
        raise MissingRuntimeError(msg, hint=_HOW_TO_GET)
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        msg = f"tritonclient cannot be imported: {error}"
        raise MissingRuntimeError(msg, hint=_HOW_TO_GET) from error
    return model_config_pb2


def new_config(**fields: Any) -> Any:
    """Return a ``ModelConfig`` with `fields` set."""
    return schema().ModelConfig(**fields)


def config_text(config: Any) -> bytes:
    """Return a configuration as the text of ``config.pbtxt``; equal values, equal bytes."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    return text.encode()


def data_type_name(number: int) -> str:
    """Return Triton's name of a data type; the number itself where it has none."""
    known = schema().DataType.DESCRIPTOR.values_by_number
    return str(known[number].name) if number in known else str(number)


def parse_config(path: Path) -> Any:
    """Read a ``config.pbtxt``.

    Raises:
        ExportDirectoryError: It is missing, or is not what Triton's schema says.
    """
    from google.protobuf import text_format

    config = new_config()
    try:
        text_format.Parse(read_file(path, _LIMIT_BYTES), config)
    except OSError as error:
        msg = f"{str(path)!r} cannot be read: {reason_of(error)}"
        raise ExportDirectoryError(msg, hint="Is this a model repository of Triton?") from error
    except (text_format.ParseError, ValueError, RecursionError) as error:
        why = str(error) or "it is not text in UTF-8"
        msg = f"{str(path)!r} is not a configuration of a model: {why}"
        raise ExportDirectoryError(msg, hint="Write the repository again.") from error
    return config
