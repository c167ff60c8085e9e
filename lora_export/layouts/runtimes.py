"""The runtimes that a layout can be written for: a row for each.

A new runtime is a module with two functions, a row here, and its name in `runtime_names`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UsageError
from lora_export.layouts.genai import describe_genai, require_genai
from lora_export.layouts.optimum import OPTIMUM_CLASSES, describe_optimum, require_optimum
from lora_export.layouts.sentence_transformers import (
    describe_sentence_transformers,
    require_sentence_transformers,
)
from lora_export.layouts.transformers_js import (
    describe_transformers_js,
    require_transformers_js,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_export.layouts.description import ExportKind, Layout, Subject

__all__ = ["RUNTIMES", "Runtime", "runtime_row"]


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Attributes:
        require: Raises `UnsupportedError` for a kind of export that it cannot run.
        describe: Returns the directory of an adapter, of the base, or (where it swaps) of the
            swappable graph with all packs.
        swaps: Whether it runs a swappable graph and loads packs.
        opening: How a user opens the directory, in a line: ``{folder}`` stands for it, ``{task}``
            for the export's task, ``{optimum_class}`` for optimum's class of that task.
    """

    require: Callable[[ExportKind], None]
    describe: Callable[[Subject], Layout]
    swaps: bool
    opening: str

    def opening_of(self, task: str) -> str:
        """Return how a directory of an export for `task` is opened, with ``{folder}`` in it."""
        found = self.opening.replace("{optimum_class}", OPTIMUM_CLASSES.get(task, ""))
        return found.replace("{task}", repr(task))


RUNTIMES: Final[Mapping[str, Runtime]] = {
    "genai": Runtime(require_genai, describe_genai, swaps=True, opening="og.Model({folder})"),
    "optimum": Runtime(
        require_optimum,
        describe_optimum,
        swaps=False,
        opening="{optimum_class}.from_pretrained({folder})",
    ),
    "sentence-transformers": Runtime(
        require_sentence_transformers,
        describe_sentence_transformers,
        swaps=False,
        opening='SentenceTransformer({folder}, backend="onnx")',
    ),
    "transformers.js": Runtime(
        require_transformers_js,
        describe_transformers_js,
        swaps=False,
        opening="await pipeline({task}, {folder})",
    ),
}


def runtime_row(name: str) -> Runtime:
    """Return the row of a runtime.

    Raises:
        UsageError: There is none of this name.
    """
    row = RUNTIMES.get(name)
    if row is None:
        msg = f"unknown runtime {name!r}"
        raise UsageError(msg, hint=f"There are: {', '.join(RUNTIMES)}.")
    return row
