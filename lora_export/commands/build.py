"""``merge-and-build``: from a base and its adapters to a verified export directory.

    recipe → checkpoint + adapters → graph (weight-free) → deltas (all resolved) → weights
           → export directory → parity → latency → bundle → model repository

Each stage is a function of the layers below; configuration stops here.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.adapter_inputs import notes_on_resolved, read_specs, recorded_source
from lora_export.commands.adapter_notes import notes_of, opened_base, with_notes
from lora_export.commands.add import add_adapters, without_copies_in
from lora_export.commands.build_checks import (
    existing_export,
    graph_source,
    require_bases,
    require_layers,
    require_mode,
    require_one_graph,
    require_open_choices,
    require_runtimes,
    require_same_base,
)
from lora_export.commands.build_config import graph_and_updates, settle
from lora_export.commands.bundle import readable, require_bundle, with_bundle
from lora_export.commands.outcome import Outcome, Reports
from lora_export.commands.resolved_adapters import ResolvedAdapter, checked_labels, resolve_adapters
from lora_export.commands.triton import with_repository
from lora_export.core.files import publish_folder, staging_folder
from lora_export.core.hub import local_path
from lora_export.core.modes import BASE_GRAPH, SHARED_MODES, Mode
from lora_export.core.progress import Progress, Silent
from lora_export.exports.create import create_export
from lora_export.exports.extend import parameters_of
from lora_export.exports.packs import add_swappable_graph
from lora_export.exports.padding import as_exported
from lora_export.exports.plan import head_parameters, match_base, require_complete
from lora_export.exports.untied_export import recorded_ties
from lora_export.report.write_report import refresh_report
from lora_export.verification.export import Evidence, measure_latency, verify_export
from lora_export.weights.checkpoint import Checkpoint, open_checkpoint
from lora_export.weights.fingerprint import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_export.commands.adapter_inputs import LoadedAdapter
    from lora_export.commands.build_config import Settings
    from lora_export.commands.recipe import Recipe
    from lora_export.core.manifest import Manifest
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["merge_and_build"]

_WRITTEN_MEANWHILE: Final = "Run again: the adapters are then added to that export."


def merge_and_build(
    recipe: Recipe, progress: Progress | None = None, *, strict: bool = False
) -> Outcome:
    """Build the export directory that `recipe` describes, verify it, and make what is served of it.

    A new directory appears complete or not at all. An existing export of the same base receives the
    recipe's adapters, and keeps those that it holds under other names. The bundle for the target
    and the model repository of the section ``triton`` come last; an export that failed a gate gets
    no repository.

    Args:
        recipe: What to build.
        progress: Told what happens.
        strict: Whether an adapter that names another base than the recipe's is an error, and an
            ambiguous or missing verdict keeps the repository from being written.

    Raises:
        LoraExportError: See the class of the error; nothing half-written is left.
    """
    tell = progress or Silent()
    require_open_choices(recipe)
    require_mode(recipe)
    output = readable(recipe.path(recipe.output))
    require_runtimes(recipe)
    require_bundle(recipe)
    existing = existing_export(output)
    checkpoint = open_checkpoint(local_path(recipe.base, recipe.folder), source=recipe.base)
    if existing is not None:
        checkpoint = as_exported(checkpoint, output)
    given = read_specs(
        recipe.adapters, recipe.folder, recipe.combine, base_config=checkpoint.config
    )
    settings = settle(recipe, checkpoint, [each.adapter for each in given])
    require_one_graph(recipe, settings.task)
    if existing is None and recipe.graph is None:
        require_layers(given, settings, recipe.mode)
    given = with_notes(
        given,
        opened_base(checkpoint),
        tell,
        model_type=str(checkpoint.config["model_type"]),
        strict=strict,
    )
    with _in_background(checkpoint) as fingerprinted:
        if existing is not None:
            require_same_base(existing, settings, fingerprinted(), output, recipe)
            outcome = _extend(
                existing,
                given,
                config=checkpoint.config,
                settings=settings,
                output=output,
                recipe=recipe,
                tell=tell,
            )
        else:
            outcome = _build(
                given,
                settings=settings,
                output=output,
                recipe=recipe,
                fingerprinted=fingerprinted,
                tell=tell,
            )
    outcome = replace(outcome, notes=(*notes_of(given), *outcome.notes))
    return with_repository(with_bundle(outcome, recipe, tell), recipe, tell, strict=strict)


def _extend(
    existing: Manifest,
    given: Sequence[LoadedAdapter],
    *,
    config: Mapping[str, Any],
    settings: Settings,
    output: Path,
    recipe: Recipe,
    tell: Progress,
) -> Outcome:
    """Add the adapters to the export that is there."""
    parameters, prefix = parameters_of(existing), existing.base.prefix
    ready = resolve_adapters(
        given,
        parameters,
        prefix=prefix,
        conversions=existing.base.conversions,
        config=config,
        task=settings.task,
        labels=recipe.labels,
        ties=recorded_ties(existing),
    )
    require_bases(ready, parameters, prefix, existing.base.conversions, settings)
    notes = notes_on_resolved([each.resolved for each in ready], tell)
    outcome = _finish(output, output, ready=ready, settings=settings, recipe=recipe, tell=tell)
    return replace(outcome, notes=notes)


def _build(
    given: Sequence[LoadedAdapter],
    *,
    settings: Settings,
    output: Path,
    recipe: Recipe,
    fingerprinted: Callable[[], str],
    tell: Progress,
) -> Outcome:
    """Trace the graph, and write a new export with the adapters."""
    settings, template, ready = graph_and_updates(recipe, settings, given, tell)
    require_bases(ready, template.parameters, template.prefix, template.conversions, settings)
    notes = notes_on_resolved([each.resolved for each in ready], tell)
    with staging_folder(output.parent, output.name) as staging:
        _create(
            staging,
            output,
            template=template,
            ready=ready,
            settings=settings,
            recipe=recipe,
            fingerprinted=fingerprinted,
            tell=tell,
        )
        outcome = _finish(staging, output, ready=ready, settings=settings, recipe=recipe, tell=tell)
        publish_folder(staging, output, hint=_WRITTEN_MEANWHILE)
    return replace(outcome, notes=notes)


@contextlib.contextmanager
def _in_background(checkpoint: Checkpoint) -> Iterator[Callable[[], str]]:
    """Compute the fingerprint while the graph is traced; an error elsewhere stops it."""
    stop = threading.Event()

    def keep_on(_: int) -> None:
        if stop.is_set():
            raise _Stopped

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(fingerprint, checkpoint, keep_on)
        try:
            yield future.result
        finally:
            stop.set()


class _Stopped(Exception):  # noqa: N818  (ends a thread; nobody sees it)
    """The fingerprint is not needed any more."""


def _create(
    staging: Path,
    output: Path,
    *,
    template: GraphTemplate,
    ready: Sequence[ResolvedAdapter],
    settings: Settings,
    recipe: Recipe,
    fingerprinted: Callable[[], str],
    tell: Progress,
) -> None:
    """Write the base into the staging folder, once it is known that nothing lacks."""
    checkpoint = settings.exported
    own = settings.own_graph
    plan = (
        own.plan
        if own is not None
        else match_base(
            template.parameters,
            template.prefix,
            checkpoint.tensors,
            conversions=template.conversions,
            resizable=head_parameters(settings.task),
        )
    )
    resolved = [each.resolved for each in ready]
    require_complete(plan.missing, resolved, checkpoint.source, plan.unused)
    labels = _base_labels(template, ready, settings, recipe, plan.missing)
    create_export(
        staging,
        checkpoint,
        template,
        plan,
        source=recorded_source(checkpoint.folder, output),
        task=settings.task.name,
        dtype=settings.dtype,
        choices=settings.choices,
        labels=labels,
        ties=settings.ties,
        fingerprint=fingerprinted,
        progress=tell,
        graph_source=graph_source(recipe, output),
        graph_report=own.report if own is not None else None,
    )


def _base_labels(
    template: GraphTemplate,
    ready: Sequence[ResolvedAdapter],
    settings: Settings,
    recipe: Recipe,
    missing: Collection[str],
) -> Sequence[str] | None:
    """Return the names of the classes of the base's head.

    Where adapters bring heads of their own, the recipe's names are the base's too if its head is as
    wide; a base without a head has the names of its first adapter's.
    """
    if not ready:
        return checked_labels(settings.task, template.parameters, recipe.labels)
    heads = settings.task.label_parameters
    if any(name in missing for name in heads):
        return ready[0].labels
    width = next((e.shape[0] for e in template.parameters if e.name in heads), None)
    return recipe.labels if recipe.labels and len(recipe.labels) == width else None


def _finish(
    root: Path,
    output: Path,
    *,
    ready: Sequence[ResolvedAdapter],
    settings: Settings,
    recipe: Recipe,
    tell: Progress,
) -> Outcome:
    """Merge the adapters, verify and measure what the recipe asks for."""
    checkpoint = settings.checkpoint
    shared = recipe.mode in SHARED_MODES
    if recipe.mode is Mode.SWAPPABLE and root != output:
        resolved = [each.resolved for each in without_copies_in(root, ready)]
        add_swappable_graph(root, resolved, modules=recipe.lora_modules)
    _, fidelity = add_adapters(
        root,
        ready,
        output=output,
        checkpoint=settings.exported,
        replace=root == output,
        progress=tell,
        mode=recipe.mode,
    )
    graph = settings.own_graph.report if settings.own_graph is not None else None
    parity = timed = None
    adapters = {each.resolved.adapter.name: each.resolved.adapter for each in ready}
    graphs = [recipe.mode.value] if shared else list(adapters)
    if recipe.verify.enabled:
        evidence = Evidence(
            checkpoint=checkpoint,
            adapters=adapters,
            dataset=recipe.path(recipe.verify.dataset) if recipe.verify.dataset else None,
            metric=recipe.verify.metric,
            max_new_tokens=recipe.verify.max_new_tokens,
            seed=recipe.verify.seed,
            allow_no_effect=recipe.verify.allow_no_effect,
        )
        names = [BASE_GRAPH, *graphs]
        _, parity = verify_export(root, names, evidence, tell)
    latency = recipe.latency
    asked = not latency.model_fields_set.isdisjoint({"enabled", "max_ratio"})
    promised = not shared  # inputs and rows cost, merged graphs have the base's latency
    if latency.enabled and (promised or asked) and (adapters or shared):
        _, timed = measure_latency(
            root,
            graphs,
            checkpoint.config,
            batch=latency.batch,
            length=latency.length,
            rounds=latency.rounds,
            max_ratio=latency.max_ratio,
            seed=recipe.verify.seed,
            progress=tell,
        )
    reports = Reports(fidelity, graph, parity, timed)
    return Outcome(output, refresh_report(root), reports)
