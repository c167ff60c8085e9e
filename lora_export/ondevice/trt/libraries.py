"""The libraries that build and run plans, TensorRT and TensorRT for RTX, as a table of facts.

A plan is opened only by the library that built it. A library that is not in `LIBRARIES` may stand
in TensorRT's place: its plans are named after it, and count as TensorRT's nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LIBRARIES",
    "TENSORRT",
    "TENSORRT_RTX",
    "Library",
    "library_of",
    "library_row",
    "library_title",
    "what_ran",
]

TENSORRT: Final = "tensorrt"
TENSORRT_RTX: Final = "tensorrt-rtx"


@dataclass(frozen=True)
class Library:
    """A library with TensorRT's API.

    Attributes:
        name: Its name in records, reports and bundles.
        title: Its name in messages.
        module: The Python module.
        tag: What stands before its version in the name of a plan.
        oldest: The oldest version that is supported, major and minor.
        below: The first major version that is not supported; None for no limit.
        install: How to install it.
        builds_ahead: Whether it builds engines on a machine without a GPU, for a list of compute
            capabilities.
        compiles_on_load: Whether the GPU that loads an engine compiles it: it says before whether
            the plan is valid there, and keep what it compiled.
        needs_driver: Options whose builds need a CUDA driver, each with its flag in the command.
        capabilities: The compute capabilities of an engine that is built ahead of time: all that
            can be named, with the member of the API.
        default_capabilities: Those of an engine for which none is named; later ones run it too.
    """

    name: str
    title: str
    module: str
    tag: str
    oldest: tuple[int, int]
    below: int | None
    install: str
    builds_ahead: bool
    compiles_on_load: bool
    needs_driver: Mapping[str, str]
    capabilities: Mapping[str, str]
    default_capabilities: tuple[str, ...]


LIBRARIES: Final[dict[str, Library]] = {
    row.name: row
    for row in (
        Library(
            name=TENSORRT,
            title="TensorRT",
            module="tensorrt",
            tag="trt",
            oldest=(10, 3),  # JetPack 6's
            below=None,
            install="On a Jetson it comes with JetPack (python3-libnvinfer); elsewhere: "
            "pip install 'tensorrt>=10.3', or a container of docker/.",
            builds_ahead=False,
            compiles_on_load=False,
            needs_driver={},
            capabilities={},
            default_capabilities=(),
        ),
        # Tried with 1.7.1 on a machine without a GPU; capabilities as its API names them. That an
        # engine without a named capability runs on 8.0, 8.6, 8.9, 12.0 and later is said in
        # NVIDIA's documentation of CPU-only builds.
        Library(
            name=TENSORRT_RTX,
            title="TensorRT for RTX",
            module="tensorrt_rtx",
            tag="rtx",
            oldest=(1, 7),
            below=2,
            install="Install it, on x86-64 Linux or Windows, with: "
            "pip install 'tensorrt-rtx-cu12>=1.7,<2'",
            builds_ahead=True,
            compiles_on_load=True,
            needs_driver={"refit": "--refit", "strip_weights": "--strip-weights"},
            capabilities={
                "7.5": "SM75",
                "8.0": "SM80",
                "8.6": "SM86",
                "8.9": "SM89",
                "12.0": "SM120",
                "12.1": "SM121",
            },
            default_capabilities=("8.0", "8.6", "8.9", "12.0"),
        ),
    )
}
"""The libraries whose plans may be deployed, by name."""


def library_row(name: str) -> Library:
    """Return the facts of a library; of one that is not in the table, TensorRT's.

    >>> library_row("tensorrt-rtx").tag, library_row("a-test-double").tag
    ('rtx', 'trt')
    """
    return LIBRARIES.get(name, LIBRARIES[TENSORRT])


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
    return LIBRARIES[library].title if library in LIBRARIES else f"the library {library!r}"


def what_ran(library: str, version: str, gpu: str | None) -> str:
    """Return which library ran where, as a sentence; of an unknown one, that TensorRT did not run.

    >>> what_ran("tensorrt", "10.3.0", "Orin")
    'TensorRT 10.3.0 on Orin'
    >>> what_ran("tensorrt-rtx", "1.7.1", None)
    'TensorRT for RTX 1.7.1, ahead of time'
    >>> what_ran("another", "10.3.0", "Orin")
    "the library 'another' 10.3.0 on Orin: TensorRT did not run"
    """
    where = ", ahead of time" if gpu is None else f" on {gpu}"
    ran = f"{library_title(library)} {version}{where}"
    return ran if library in LIBRARIES else f"{ran}: TensorRT did not run"
