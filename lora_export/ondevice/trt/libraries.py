"""The libraries that build and run plans, by the names that they have in records and reports.

A plan is opened only by the library that built it. A library that is not in `LIBRARIES` may stand
in TensorRT's place: its plans are named after it, and count as TensorRT's nowhere.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["LIBRARIES", "TENSORRT", "library_of", "library_title", "what_ran"]

TENSORRT: Final = "tensorrt"

LIBRARIES: Final[dict[str, str]] = {
    TENSORRT: "TensorRT",
    "tensorrt-rtx": "TensorRT for RTX",
}
"""The libraries whose plans may be deployed: what each is called."""


def library_of(module: Any) -> str:
    """Return the name of the library that an imported module is, by the module's own name.

    >>> import types
    >>> library_of(types.ModuleType("tensorrt_rtx"))
    'tensorrt-rtx'
    """
    return str(module.__name__).replace("_", "-")


def library_title(library: str) -> str:
    """Return what a library is called in messages.

    >>> library_title("tensorrt"), library_title("another")
    ('TensorRT', "the library 'another'")
    """
    return LIBRARIES.get(library) or f"the library {library!r}"


def what_ran(library: str, version: str, gpu: str) -> str:
    """Return which library ran where, as a sentence; of an unknown one, that TensorRT did not run.

    >>> what_ran("tensorrt", "10.3.0", "Orin")
    'TensorRT 10.3.0 on Orin'
    >>> what_ran("another", "10.3.0", "Orin")
    "the library 'another' 10.3.0 on Orin: TensorRT did not run"
    """
    ran = f"{library_title(library)} {version} on {gpu}"
    return ran if library in LIBRARIES else f"{ran}: TensorRT did not run"
