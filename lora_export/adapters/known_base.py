"""The base that an adapter was made for, as `adapter convert` records it in the adapter's file.

One entry of the safetensors header's ``__metadata__``, which PEFT does not look at: JSON of the
base's fingerprint and, for each tensor that the adapter changes, its dtype, its shape and the first
16 hexadecimal digits of the SHA-256 of its bytes. So the check reads the adapted tensors alone, and
a wrong base can be told by the tensors that differ.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["METADATA_KEY", "KnownBase", "read_known_base"]

METADATA_KEY: Final = "lora_export.core"
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST: Final = re.compile(r"[0-9a-f]{16}")
_ROW_LENGTH: Final = 3


@dataclass(frozen=True)
class KnownBase:
    """A base, recognised again by its values.

    Attributes:
        fingerprint: Of the whole checkpoint; see ``weights/fingerprint.py``.
        tensors: The adapted tensors by the checkpoint's names, sorted: dtype, shape, digest.
    """

    fingerprint: str
    tensors: Mapping[str, tuple[str, tuple[int, ...], str]] = field(repr=False)

    def metadata(self) -> dict[str, str]:
        """Return the entries of the header."""
        rows = {name: [dtype, list(shape), digest] for name, (dtype, shape, digest)
                in sorted(self.tensors.items())}  # fmt: skip
        table = {"fingerprint": self.fingerprint, "tensors": rows}
        return {METADATA_KEY: json.dumps(table, separators=(",", ":"))}


def read_known_base(metadata: Mapping[str, object], source: str) -> KnownBase | None:
    """Return the base that a file's metadata names; None where it names none.

    Raises:
        AdapterError: The entry is damaged.
    """
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        table = json.loads(str(text))
        fingerprint = table["fingerprint"]
        rows = {name: _row(value) for name, value in table["tensors"].items()}
        known = KnownBase(_checked(fingerprint, _FINGERPRINT), rows)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        msg = f"adapter {source!r} records its base in {METADATA_KEY!r}, which is damaged"
        raise AdapterError(msg, hint="Convert it again: adapter convert … --base BASE") from error
    return known


def _row(value: object) -> tuple[str, tuple[int, ...], str]:
    if not isinstance(value, list) or len(value) != _ROW_LENGTH:
        raise ValueError(value)
    dtype, shape, digest = value
    numbers = isinstance(shape, list) and all(type(each) is int for each in shape)
    if not isinstance(dtype, str) or not numbers:
        raise ValueError(value)
    return dtype, tuple(shape), _checked(digest, _DIGEST)


def _checked(text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(text)
    return text
