"""Calls in the forked process: the command line, the Python API, or a bundle's program."""

from __future__ import annotations

import importlib
import pkgutil
import runpy
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import lora_export

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["call", "preload"]

_LIBRARIES: Final = ("huggingface_hub", "numpy.random", "onnx", "onnxruntime", "tokenizers")
_OF_TORCH: Final = (
    "torch", "transformers", "peft", "networkx", "onnxscript", "torch._inductor.codecache",
    "torch._export.serde.serialize",
    "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama",
)  # fmt: skip
_IMPORT_TORCH: Final = (
    "lora_export.graph.trace.",
    "lora_export.graph.optimize.",
    "lora_export.graph.template_build",
    "lora_export.core.torch_private",
)
_ELSEWHERE: Final = "lora_export.triton.serving."
"""What is imported by a Triton server alone."""


def preload(*, torch: bool) -> None:
    """Import what commands import, so that a forked process need not; nothing starts a thread.

    Args:
        torch: Whether some of the commands use it; it takes seconds.
    """
    for name in (*_LIBRARIES, *(_OF_TORCH if torch else ())):
        importlib.import_module(name)
    omitted = (_ELSEWHERE, *(() if torch else _IMPORT_TORCH))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # modules that have moved
        for module in pkgutil.walk_packages(lora_export.__path__, "lora_export."):
            if not module.name.startswith(omitted) and not module.name.endswith(".__main__"):
                importlib.import_module(module.name)


def call(words: Sequence[str], *, double: bool) -> int:
    """Run the words; return the exit code."""
    if words[0] == "run.py":
        return _run_program(Path(words[1]), words[2:])
    if words[0].startswith("api:"):
        return _run_function(_FUNCTIONS[words[0].removeprefix("api:")], Path(words[1]))
    from lora_export.cli import run

    if not double:
        return run(list(words))
    import pytest

    from tests.helpers.double import install_double

    with pytest.MonkeyPatch.context() as patch:
        install_double(patch)
        return run(list(words))


def _run_program(bundle: Path, arguments: Sequence[str]) -> int:
    """Run a bundle's own program, as ``python3 -I run.py`` does, without what is imported here."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "lora_export"]:
        del sys.modules[name]
    sys.argv = [str(bundle / "run.py"), *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 1
    return 0


def _run_function(function: Callable[[Path], object], path: Path) -> int:
    """Call a function of the Python API: it may raise the project's errors and no others."""
    from lora_export import LoraExportError

    try:
        function(path)
    except LoraExportError as error:
        sys.stderr.write(f"error: {error.message}\n{error.hint}\n")
        return error.exit_code
    except Exception:  # noqa: BLE001  (a finding: it is printed, and judged)
        traceback.print_exc()
        return 1
    return 0


def _open_export(path: Path) -> None:
    from lora_export import open_export

    with open_export(path) as session:
        for adapter in session.adapters:
            session.load(adapter)


def _verify(path: Path) -> None:
    from lora_export import verify

    verify(path)


def _inspect(path: Path) -> None:
    from lora_export import inspect

    inspect(path)


_FUNCTIONS: Final[dict[str, Callable[[Path], object]]] = {
    "open_export": _open_export,
    "verify": _verify,
    "inspect": _inspect,
}
