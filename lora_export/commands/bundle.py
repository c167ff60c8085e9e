"""The bundle that a recipe asks for, packed when the export is there and verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.commands.outcome import PackedBundle
from lora_export.core.errors import ParityError, UsageError
from lora_export.core.targets import RTX, require_tensorrt_target
from lora_export.ondevice.file_opening import real_path

if TYPE_CHECKING:
    from lora_export.commands.outcome import Outcome
    from lora_export.commands.recipe import Recipe
    from lora_export.core.progress import Progress
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["readable", "require_bundle", "require_profiles", "wants_bundle", "with_bundle"]

_CARRIED: Final = frozenset({"jetson-orin", "jetson-thor"})
"""Targets that nobody builds exports on: what is for them is carried there."""


def wants_bundle(recipe: Recipe) -> bool:
    """Whether a recipe ends with a bundle."""
    spec = recipe.bundle
    if spec.enabled is not None:
        return spec.enabled
    if spec.file is not None:
        return True
    return recipe.verify.enabled and not _CARRIED.isdisjoint(recipe.targets)


def require_bundle(recipe: Recipe) -> None:
    """Require of a recipe that it says whom its bundle is for, and replaces nothing but a bundle.

    Raises:
        BundleError: A file of another kind is where the bundle goes.
        UsageError: A bundle is asked for, and no target that runs engines.
    """
    if not wants_bundle(recipe):
        return
    if not recipe.targets:
        msg = "a bundle needs a device as its target"
        raise UsageError(msg, hint="Name it: --target jetson-orin.")
    if recipe.targets[0] == RTX:
        msg = "a bundle for 'rtx' takes engines, which are built of a finished export"
        hint = "Leave the bundle out, then: lora-export build OUT --target rtx, and bundle it."
        raise UsageError(msg, hint=hint)
    from lora_export.bundle.packing import require_replaceable

    require_tensorrt_target(recipe.targets[0])
    require_replaceable(_path(recipe))


def _path(recipe: Recipe) -> Path:
    """Return where the bundle goes."""
    spec = recipe.bundle
    if spec.file:
        return recipe.path(spec.file)
    from lora_export.bundle.bundle_names import default_path

    return default_path(readable(recipe.path(recipe.output)), recipe.targets[0])


def require_profiles(recipe: Recipe, template: GraphTemplate) -> None:
    """Require that the profiles of a recipe's bundle name axes of the graph.

    Raises:
        UsageError: One names another axis.
    """
    if not wants_bundle(recipe) or not recipe.profiles:
        return
    from lora_export.engines.profiles import axes_of, axis_ranges, require_axes
    from lora_export.graph.spec.onnx_file import parse_onnx
    from lora_export.graph.spec.signature import read_signature

    graphs = [each for each in (template.onnx_bytes, template.encoder_bytes) if each is not None]
    axes = {axis for graph in graphs for axis in axes_of(read_signature(parse_onnx(graph)).inputs)}
    require_axes([axis_ranges(profile) for profile in recipe.profiles], axes)


def with_bundle(outcome: Outcome, recipe: Recipe, progress: Progress) -> Outcome:
    """Pack the bundle that a recipe asks for; return the outcome with what was packed.

    A graph that failed its verification is not bundled: the outcome says so by its exit code.

    Raises:
        LoraExportError: See `bundle_export`.
    """
    if not wants_bundle(recipe):
        return outcome
    from lora_export.bundle.device_bundle import LatencySettings, bundle_export
    from lora_export.engines.engine_options import EngineOptions
    from lora_export.engines.profiles import axis_ranges

    target, spec, latency = recipe.targets[0], recipe.bundle, recipe.latency
    try:
        packed = bundle_export(
            outcome.output,
            target,
            _path(recipe),
            options=EngineOptions(
                profiles=[axis_ranges(profile) for profile in recipe.profiles], refit=spec.refit
            ),
            latency=LatencySettings(
                latency.batch, latency.length, latency.rounds, latency.max_ratio
            ),
            allow_failed=spec.allow_failed,
            replace=True,  # as a rerun replaces the adapters that it brings
            progress=progress,
        )
    except ParityError as error:
        progress.note(f"no bundle: {error.message}")
        return outcome
    bundle = PackedBundle(
        file=str(readable(packed.path)),
        name=packed.name,
        target=target,
        sha256=packed.sha256,
        bytes=packed.size_bytes,
        files=packed.files,
    )
    return replace(outcome, reports=replace(outcome.reports, bundle=bundle))


def readable(path: Path) -> Path:
    """Return the path relative to the working directory where it is below it, else absolute."""
    whole, here = real_path(path), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole
