"""Settings and types of values that the records of ``lora_export.json`` share."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field

__all__ = ["RECORD_CONFIG", "Sha256"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hexadecimal."""

RECORD_CONFIG: Final = ConfigDict(
    extra="forbid",
    frozen=True,
    defer_build=True,
    protected_namespaces=(),  # pydantic 2.7 to 2.9 warn about fields that begin with ``model_``
)
"""Records are frozen, refuse unknown keys, and are built where they are first used."""
