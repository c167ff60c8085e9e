"""The versions that results depend on: they are part of every key, so a run must have them too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import MissingRuntimeError, UnsupportedError
from lora_export.core.installation import install_command
from lora_export.core.supported_versions import installed_version
from lora_export.core.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["require_same_versions", "tool_versions"]

_LIBRARIES: Final = ("onnx", "onnxruntime", "torch", "transformers", "peft")


def tool_versions() -> dict[str, str]:
    """Return the versions of the tool and of the libraries that the results depend on."""
    installed = {name: installed_version(name) for name in _LIBRARIES}
    return {"lora-export": VERSION, **{name: each for name, each in installed.items() if each}}


def require_same_versions(
    tool: str, versions: Mapping[str, str], *, who: str, hint: str, whole: bool = True
) -> None:
    """Require the versions that a plan was made with.

    Args:
        tool: That of lora-export.
        versions: Those of the libraries.
        who: Which machine is meant, for the message.
        hint: The next step where a version is another.
        whole: Whether a library that is not installed is an error.

    Raises:
        UnsupportedError: A version is another.
        MissingRuntimeError: A library is not installed.
    """
    if tool != VERSION:
        msg = f"{who} has lora-export {VERSION}, the plan was made with {tool}"
        raise UnsupportedError(msg, hint=hint)
    for name, version in versions.items():
        found = installed_version(name)
        if found is None and whole:
            msg = f"{who} does not have {name}, which the plan was made with ({version})"
            raise MissingRuntimeError(msg, hint=f"On it, {install_command('export,cpu')}")
        if found is not None and found != version:
            msg = f"{who} has {name} {found}, the plan was made with {version}"
            raise UnsupportedError(msg, hint=hint)
