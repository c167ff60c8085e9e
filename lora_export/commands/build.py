"""``merge-and-build``: from a base and its adapters to a verified export directory.

    recipe → checkpoint + adapters → graph (without weights) → updates (all resolved) → weights
           → export directory → parity → latency → bundle → model repository → layouts

Each stage is a function of the packages below, or a module of this one; configuration stops here.
docs/architecture.md walks through the steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_export.commands.adapter_inputs import notes_on_resolved
from lora_export.commands.build_checks import require_bases, require_recipe, require_same_base
from lora_export.commands.build_config import graph_and_updates, target_of
from lora_export.commands.build_export import fill_export, quantized_sources, write_base
from lora_export.commands.build_inputs import fingerprint_in_background, read_inputs
from lora_export.commands.build_layouts import require_kind_for_layouts, with_layouts
from lora_export.commands.bundle import require_profiles, with_bundle
from lora_export.commands.quantize_choice import (
    reads_blocks,
    with_int8_blocks,
    with_stored_blocks,
)
from lora_export.commands.resolved_adapters import resolve_adapters
from lora_export.commands.triton import with_repository
from lora_export.core.files import publish_folder, staging_folder
from lora_export.core.modes import SHARED_MODES
from lora_export.core.progress import Progress, Silent
from lora_export.exports.stored_values import parameters_of
from lora_export.exports.untied_export import recorded_ties

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_export.commands.build_export import Judged
    from lora_export.commands.build_inputs import BuildInputs
    from lora_export.commands.outcome import Outcome
    from lora_export.commands.recipe import Recipe
    from lora_export.core.quantization_record import StoredForm

__all__ = ["merge_and_build"]

_WRITTEN_MEANWHILE: Final = "Run again: the adapters are then added to that export."


def merge_and_build(
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    strict: bool = False,
    judged: Judged = "all",
    base_fingerprint: str | None = None,
) -> Outcome:
    """Build the export directory that `recipe` describes, verify it, write its bundle and models.

    A new directory appears complete or not at all. An existing export of the same base receives the
    recipe's adapters, and keeps those that it holds under other names. An export that fails a gate
    is kept, with its verdicts; `Outcome.exit_code` tells. The bundle for the target, the model
    repository of the section ``triton`` and the layouts are written last: no bundle where parity
    failed, unless the recipe allows it, and no repository and no layouts where a gate failed.

    Args:
        recipe: What to build.
        progress: Told what happens.
        strict: Whether an adapter that names another base than the recipe's is an error, and an
            ambiguous or missing verdict keeps the repository from being written.
        judged: The graphs that are verified where the recipe asks for it: ``all``; ``base``, and
            not the adapters; ``adapters``, and not a base whose graph has passed before.
        base_fingerprint: The fingerprint of the base, where that is known: the base is then not
            read to compute it.

    Raises:
        LoraExportError: See the class of the error; nothing half-written is left.
    """
    tell = progress or Silent()
    recipe = _with_int8_blocks(recipe)
    require_recipe(recipe)
    inputs = read_inputs(recipe, tell, strict=strict)
    recipe = _with_stored_blocks(recipe, inputs.checkpoint.stored_form)
    require_kind_for_layouts(recipe, inputs.config)
    with fingerprint_in_background(inputs.checkpoint, base_fingerprint) as fingerprint:
        build = _create if inputs.existing is None else _extend
        outcome = build(recipe, inputs, fingerprint, tell, judged)
    outcome = with_bundle(outcome, recipe, tell)
    outcome = with_repository(outcome, recipe, tell, strict=strict)
    return with_layouts(outcome, recipe, tell, strict=strict)


def _with_int8_blocks(recipe: Recipe) -> Recipe:
    """Return the recipe with the block size of int8; a graph of the user's has its own opset."""
    if recipe.quantize is None or recipe.graph is not None:
        return recipe
    if not reads_blocks(recipe.opset, target_of(recipe)):
        return recipe
    return recipe.model_copy(update={"quantize": with_int8_blocks(recipe.quantize)})


def _with_stored_blocks(recipe: Recipe, stored: StoredForm | None) -> Recipe:
    """Return the recipe with the block size of a base that is stored in int4 blocks."""
    if recipe.quantize is None:
        return recipe
    return recipe.model_copy(update={"quantize": with_stored_blocks(recipe.quantize, stored)})


def _create(
    recipe: Recipe,
    inputs: BuildInputs,
    base_fingerprint: Callable[[], str],
    tell: Progress,
    judged: Judged,
) -> Outcome:
    """Build a new export directory in a staging folder, and publish it."""
    config, template, adapters = graph_and_updates(recipe, inputs.config, inputs.adapters, tell)
    require_profiles(recipe, template)
    require_bases(adapters, template.parameters, template.prefix, template.conversions, config)
    if recipe.quantize is not None:
        from lora_export.commands.build_quantized import quantized

        stored = quantized_sources(config, template)
        zero_points = recipe.mode in SHARED_MODES and not target_of(recipe).tensorrt
        template, adapters = quantized(
            recipe, config.task, template, adapters, tell, sources=stored, zero_points=zero_points
        )
    notes = notes_on_resolved([each.resolved for each in adapters], tell)
    output = inputs.output
    with staging_folder(output.parent, output.name) as staging:
        write_base(
            staging,
            recipe,
            config,
            template,
            adapters,
            base_fingerprint=base_fingerprint,
            output=output,
            tell=tell,
        )
        outcome = fill_export(
            staging, recipe, config, adapters, output=output, tell=tell, judged=judged
        )
        publish_folder(staging, output, hint=_WRITTEN_MEANWHILE)
    return replace(outcome, notes=(*inputs.notes, *notes))


def _extend(
    recipe: Recipe,
    inputs: BuildInputs,
    base_fingerprint: Callable[[], str],
    tell: Progress,
    judged: Judged,
) -> Outcome:
    """Add the recipe's adapters to an export of the same base."""
    existing, config, output = inputs.existing, inputs.config, inputs.output
    assert existing is not None  # noqa: S101  (the caller looked)
    require_same_base(existing, config, base_fingerprint(), output, recipe)
    parameters, base = parameters_of(existing), existing.base
    adapters = resolve_adapters(
        inputs.adapters,
        parameters,
        prefix=base.prefix,
        conversions=base.conversions,
        config=inputs.checkpoint.config,
        task=config.task,
        labels=recipe.labels,
        ties=recorded_ties(existing),
    )
    require_bases(adapters, parameters, base.prefix, base.conversions, config)
    notes = notes_on_resolved([each.resolved for each in adapters], tell)
    outcome = fill_export(output, recipe, config, adapters, output=output, tell=tell, judged=judged)
    return replace(outcome, notes=(*inputs.notes, *notes))
