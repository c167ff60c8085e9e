"""The layouts that a recipe asks for: ``<output>-<runtime>/`` for each runtime, written last."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.modes import Mode
from lora_export.ondevice.file_opening import real_path

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.commands.build_config import BuildConfig
    from lora_export.commands.outcome import Outcome
    from lora_export.commands.recipe import Recipe
    from lora_export.core.progress import Progress

__all__ = ["layout_path", "require_kind_for_layouts", "require_layouts", "with_layouts"]


def layout_path(output: Path, runtime: str) -> Path:
    """Return where the layout of an export for a runtime goes: beside the export."""
    whole = output if output.name not in {"", ".."} else real_path(output)
    return whole.with_name(f"{whole.name}-{runtime}")


def require_layouts(recipe: Recipe) -> None:
    """Require of a recipe's layouts that each is asked for once and replaces nothing but a layout.

    Raises:
        UsageError: A runtime is named twice.
        UnsupportedError: Adapters are rows of a batched graph.
        ExportDirectoryError: Something else is where a layout goes.
    """
    if not recipe.layouts:
        return
    from lora_export.layouts.target_folder import require_place

    if twice := {each for each in recipe.layouts if recipe.layouts.count(each) > 1}:
        msg = f"the recipe's 'layouts' has {min(twice)!r} twice"
        raise UsageError(msg, hint="Name each runtime once.")
    if recipe.adapters and recipe.mode == Mode.BATCHED:
        msg = "rows of a batched graph have no layout: other runtimes cannot choose among them"
        raise UnsupportedError(msg, hint="Export with mode: merged or swappable.")
    output = recipe.path(recipe.output)
    for each in recipe.layouts:
        require_place(layout_path(output, each), output, replace=True)


def require_kind_for_layouts(recipe: Recipe, config: BuildConfig) -> None:
    """Require that the runtimes of a recipe's layouts can run what it builds.

    Raises:
        UnsupportedError: One cannot.
    """
    if not recipe.layouts:
        return
    from lora_export.layouts.description import ExportKind
    from lora_export.layouts.runtimes import runtime_row

    choices = config.choices
    kind = ExportKind(
        str(config.checkpoint.config.get("model_type")),
        config.task.name,
        recipe.mode,
        choices.cache,
        choices.cache_length,
        recipe.graph_form,
    )
    for each in recipe.layouts:
        runtime_row(each).require(kind)


def with_layouts(outcome: Outcome, recipe: Recipe, progress: Progress, *, strict: bool) -> Outcome:
    """Write the layouts that a recipe asks for; return the outcome with them.

    An export that failed a gate gets none: the outcome says so by its exit code.

    Raises:
        LoraExportError: See `layout`.
    """
    if not recipe.layouts:
        return outcome
    if outcome.exit_code(strict=strict) != 0:
        progress.note("no layouts: the export failed a gate")
        return outcome
    from lora_export.commands.layout import layout

    written = tuple(
        layout(
            outcome.output,
            each,
            layout_path(outcome.output, each),
            replace=True,  # as a rerun replaces the adapters that it brings
            progress=progress,
        )
        for each in recipe.layouts
    )
    return replace(outcome, layouts=written)
