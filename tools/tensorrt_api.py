"""The Python API of an installed TensorRT library as JSON, for tests that compare our calls.

    python -m tools.tensorrt_api tensorrt_rtx

It writes ``tests/data/tensorrt_api/<version>.json``: classes with their properties and the
signatures of their methods, enumerations with their members, and functions, as the bindings
describe themselves. Nothing of the library is called; no GPU is needed.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any, Final

from lora_export.ondevice.trt.libraries import library_of

FOLDER: Final = Path(__file__).resolve().parents[1] / "tests" / "data" / "tensorrt_api"
CLASSES: Final = frozenset(
    {
        "Builder", "Dims", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IConstantLayer",
        "IDequantizeLayer", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition",
        "IOptimizationProfile", "IProgressMonitor",
        "IRuntimeCache", "IRuntimeConfig", "ISerializationConfig", "ITensor", "ITimingCache",
        "OnnxParser", "OnnxParserRefitter", "ParserError", "Refitter", "Runtime", "Weights",
    }
)  # fmt: skip
"""The classes whose methods are kept: those that we use."""

_OBJECT: Final = frozenset(dir(object)) - {"__init__"}


def describe(module: Any) -> dict[str, Any]:
    """Return the API of a module as JSON values."""
    classes: dict[str, dict[str, Any]] = {}
    enums: dict[str, list[str]] = {}
    functions: dict[str, list[str]] = {}
    for name in sorted(n for n in dir(module) if not n.startswith("_")):
        value = getattr(module, name)
        if isinstance(value, type) and hasattr(value, "__members__"):
            enums[name] = sorted(value.__members__)
        elif isinstance(value, type) and name in CLASSES:
            classes[name] = _members(value)
        elif callable(value) and not isinstance(value, type):
            functions[name] = _signatures(value, name)
    return {
        "classes": classes,
        "enums": enums,
        "functions": functions,
        "library": library_of(module),
        "version": str(module.__version__),
    }


def _members(kind: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in sorted(set(dir(kind)) - _OBJECT):
        if name.startswith("_") and name != "__init__":
            continue
        value = getattr(kind, name)
        is_method = callable(value) and not isinstance(value, type(kind))
        found[name] = _signatures(value, name) if is_method else "property"
    return found


def _signatures(value: Any, name: str) -> list[str]:
    """Return the signatures in a docstring of pybind11; of an overloaded function, each."""
    found = []
    for line in (value.__doc__ or "").splitlines():
        text = line.strip().split(". ", 1)[-1] if line.strip()[:1].isdigit() else line.strip()
        if text.startswith(f"{name}(") and "->" in text and "*args" not in text:
            found.append(text.replace("tensorrt_bindings.tensorrt.", "").replace(_PACKAGE, ""))
    return found


_PACKAGE: Final = "tensorrt_rtx_bindings.tensorrt_rtx."


def main() -> None:
    """Write the file of one module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", help="tensorrt or tensorrt_rtx")
    module = importlib.import_module(parser.parse_args().module)
    path = FOLDER / f"{module.__version__}.json"
    path.write_text(json.dumps(describe(module), indent=1, sort_keys=True) + "\n", "utf-8")
    print(path.name)


if __name__ == "__main__":
    main()
