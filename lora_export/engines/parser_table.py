"""Operators and types that TensorRT's ONNX parser reads, by version; the one copy of them.

The table of 10.1 (``data/``) is onnx-tensorrt's ``docs/operators.md``, with each operator's types.
`_CHANGES` is what later release notes and the table of 10.15 add to it. An operator that is in
neither is unknown: nothing here says that it is read. The parser of TensorRT for RTX reads what
TensorRT's does, but for the operators of `_RTX_ADDED` and `_RTX_REFUSED`.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Literal

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.ondevice.trt.libraries import TENSORRT, TENSORRT_RTX, library_title
from lora_export.ondevice.trt.versions import parse_version

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ONNX_TYPES", "RTX_FOLLOWS", "Parser", "Support", "parser_of", "version_of"]

Support = Literal["supported", "refused", "unknown"]

Version = tuple[int, int]

_FIRST: Final = (10, 1)
_TABLE: Final = "tensorrt_operators_10.1.json"
_FLOATS: Final = ("FP32", "FP16", "BF16")
_CONSTANTS: Final = (*_FLOATS, "FP8", "FP4", "INT4", "INT32", "INT64", "BOOL")

_CHANGES: Final[dict[Version, dict[str, tuple[str, ...]]]] = {
    (10, 4): dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), ("FP32", "FP16")),
    (10, 5): {"STFT": ("FP32",)},
    (10, 14): {"Attention": (*_FLOATS, "INT8", "FP8")},
    (10, 15): {
        "RMSNormalization": _FLOATS,
        "RotaryEmbedding": _FLOATS,
        "TensorScatter": (*_FLOATS, "INT32"),
        "Constant": _CONSTANTS,
        "ConstantOfShape": _CONSTANTS,
        "DequantizeLinear": ("INT8", "FP8", "FP4", "INT4"),
        "Pow": (*_FLOATS, "INT32", "INT64"),
    },
    (11, 0): {"Swish": ()},
}
"""Operators that a version reads and those before it do not, or with fewer types.

Sources: onnx-tensorrt's ``docs/Changelog.md`` and TensorRT's release notes; types from the table of
10.15, and empty where no table has them.
"""

RTX_FOLLOWS: Final = "11.4"
"""The version of TensorRT whose table TensorRT for RTX is checked by."""

_RTX_ADDED: Final = ("CausalConvWithState", "LinearAttention")
_RTX_REFUSED: Final = ("DeformConv", "NonZero", "RoiAlign")
"""TensorRT for RTX 1.7.1 was asked about every operator of ONNX: it reads what TensorRT 11.4 does,
with additions, without ``DeformConv`` and without two that need a plugin, of which it has none."""

_OPSETS: Final[dict[Version, int]] = {(10, 1): 20, (10, 15): 24, (11, 4): 25}
"""The newest opset that a version's table names; a version between two has the older one's."""

ONNX_TYPES: Final[dict[int, str]] = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    6: "INT32",
    7: "INT64",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    16: "BF16",
    17: "FP8",
    22: "INT4",
    23: "FP4",
}
"""``onnx.TensorProto.DataType`` to the table's words; what is not here TensorRT does not have."""


@dataclass(frozen=True)
class Parser:
    """The parser of one version.

    Attributes:
        library: The library that it belongs to.
        name: The library and its version (``"TensorRT 10.3"``).
        number: The version of TensorRT, to compare; of TensorRT for RTX, the one that it follows.
        opset_min: The oldest opset that it reads.
        opset_max: The newest.
        types: The types that each operator takes; empty where they are not known.
        refused: Operators that it is known not to read.
        later: Of those, the version that does, where there is one.
    """

    library: str
    name: str
    number: Version
    opset_min: int
    opset_max: int
    types: Mapping[str, tuple[str, ...]]
    refused: frozenset[str]
    later: Mapping[str, str]

    def support(self, operator: str) -> Support:
        """Return whether an operator of ONNX's own domain is read."""
        if operator in self.types:
            return "supported"
        return "refused" if operator in self.refused else "unknown"


def version_of(text: str) -> Version:
    """Return the part of a version that the tables go by: ``(10, 3)`` of ``"10.3.0"``.

    Raises:
        UsageError: It is not a version.
        UnsupportedError: It is older than the oldest table.
    """
    match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})(\.[\w.]{1,20})?", text)
    if match is None:
        msg = f"{text!r} is not a version of TensorRT"
        raise UsageError(msg, hint="Write it as 10.3 or 10.3.0.")
    number = (int(match[1]), int(match[2]))
    if number < _FIRST:
        msg = f"TensorRT {text} is older than the oldest supported version, 10.1"
        raise UnsupportedError(msg, hint="Engines are built with TensorRT 10.3 and newer.")
    return number


@functools.cache
def parser_of(version: str, library: str = TENSORRT) -> Parser:
    """Return the table of the parser of a version.

    Args:
        version: The version of the library.
        library: The library: TensorRT, or TensorRT for RTX.

    Raises:
        UsageError: `version` is none.
        UnsupportedError: It is older than the oldest table.
        DeviceError: It is a version of TensorRT for RTX that is not supported.
    """
    rtx = library == TENSORRT_RTX
    if rtx:
        parse_version(version, library)
    number = version_of(RTX_FOLLOWS if rtx else version)
    table = _first_table()
    types = {name: tuple(each) for name, each in table["operators"].items()}
    later: dict[str, str] = {}
    for since, rows in sorted(_CHANGES.items()):
        if since <= number:
            types |= rows
        else:
            new = (name for name in rows if name not in types)
            later |= {name: f"{since[0]}.{since[1]}" for name in new if name not in later}
    refused = {*table["refused"], *later} - set(types)
    if rtx:
        types |= dict.fromkeys(_RTX_ADDED, ())
        types = {name: each for name, each in types.items() if name not in _RTX_REFUSED}
        refused = refused.union(_RTX_REFUSED).difference(_RTX_ADDED)
    return Parser(
        library=TENSORRT_RTX if rtx else TENSORRT,
        name=f"{library_title(library)} {version}",
        number=number,
        opset_min=table["opset_min"],
        opset_max=max(newest for since, newest in _OPSETS.items() if since <= number),
        types=types,
        refused=frozenset(refused),
        later=later,
    )


@functools.cache
def _first_table() -> dict[str, Any]:
    file = resources.files("lora_export.engines") / "data" / _TABLE
    table: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return table
