"""An export directory filled: the base's weights, the adapters, the verdicts on them.

Verification is imported for a recipe that asks for it, as every further stage of a build is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from lora_export.commands.adapter_inputs import recorded_source
from lora_export.commands.add import add_adapters, fidelity_report_of, without_copies_in
from lora_export.commands.build_checks import graph_source
from lora_export.commands.measured_inputs import measure_of
from lora_export.commands.open_base import training_base
from lora_export.commands.outcome import Outcome, Reports
from lora_export.commands.quantize_choice import record_of
from lora_export.commands.resolved_adapters import ResolvedAdapter, checked_labels
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import BASE_GRAPH, SHARED_MODES, Mode
from lora_export.exports.create import create_export
from lora_export.exports.plan import head_parameters, match_base, require_complete
from lora_export.report.refresh_report import refresh_report
from lora_export.weights.parameter_entries import count_carried

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from lora_export.commands.build_config import BuildConfig
    from lora_export.commands.recipe import Recipe
    from lora_export.core.progress import Progress
    from lora_export.core.reports.latency_report import LatencyReport
    from lora_export.core.reports.parity_report import ParityReport
    from lora_export.core.reports.quantization_report import QuantizationReport
    from lora_export.core.tensors import Tensor
    from lora_export.exports.plan import BasePlan
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["Judged", "fill_export", "quantized_sources", "write_base"]

Judged = Literal["all", "base", "adapters"]
"""The graphs that a build verifies: all; the base alone; the adapters, and a base that has not
passed yet."""


def write_base(
    staging: Path,
    recipe: Recipe,
    config: BuildConfig,
    template: GraphTemplate,
    adapters: Sequence[ResolvedAdapter],
    *,
    base_fingerprint: Callable[[], str],
    output: Path,
    tell: Progress,
) -> None:
    """Write the base graph and the base's weights, once every parameter has a value.

    Args:
        staging: The folder that becomes the export.
        recipe: What to build.
        config: Task, dtype and interface.
        template: The base graph without weights.
        adapters: The adapters; they may bring parameters that the base lacks.
        base_fingerprint: Returns the fingerprint of the base.
        output: Where the export will be.
        tell: Told about bytes.

    Raises:
        LoraExportError: See the class of the error.
    """
    checkpoint = config.exported
    own = config.own_graph
    plan = _plan(config, template)
    resolved = [each.resolved for each in adapters]
    if carried := count_carried(template.parameters, plan.sources):
        tell.note(f"note: {carried} weights keep the integers that the base stores")
    require_complete(plan.missing, resolved, checkpoint.source, plan.unused)
    labels = _base_labels(template, adapters, config, recipe, plan.missing)
    create_export(
        staging,
        checkpoint,
        template,
        plan,
        source=recorded_source(checkpoint.place, output),
        task=config.task.name,
        dtype=config.dtype,
        choices=config.choices,
        labels=labels,
        ties=config.ties,
        trained_on=training_base(checkpoint, output),
        fingerprint=base_fingerprint,
        progress=tell,
        graph_source=graph_source(recipe, output),
        graph_report=own.report if own is not None else None,
        quantization=record_of(recipe.quantize),
        form=recipe.graph_form,
        measure=measure_of(recipe.quantize.method if recipe.quantize else None, tell),
    )


def _plan(config: BuildConfig, template: GraphTemplate) -> BasePlan:
    """Return where the value of every parameter comes from."""
    if config.own_graph is not None:
        return config.own_graph.plan
    return match_base(
        template.parameters,
        template.prefix,
        config.exported.tensors,
        conversions=template.conversions,
        resizable=head_parameters(config.task),
    )


def quantized_sources(config: BuildConfig, template: GraphTemplate) -> Mapping[str, Tensor]:
    """Return the tensors of a base that is stored quantized, by the parameters' names; else {}."""
    return _plan(config, template).sources if config.exported.quantized is not None else {}


def _base_labels(
    template: GraphTemplate,
    adapters: Sequence[ResolvedAdapter],
    config: BuildConfig,
    recipe: Recipe,
    missing: Collection[str],
) -> Sequence[str] | None:
    """Return the names of the classes of the base's head.

    Where adapters bring heads of their own, the recipe's names are the base's too if its head is as
    wide; a base without a head has the names of its first adapter's.
    """
    if not adapters:
        return checked_labels(config.task, template.parameters, recipe.labels)
    heads = config.task.label_parameters
    if any(name in missing for name in heads):
        return adapters[0].labels
    width = next((e.shape[0] for e in template.parameters if e.name in heads), None)
    return recipe.labels if recipe.labels and len(recipe.labels) == width else None


def fill_export(
    export_dir: Path,
    recipe: Recipe,
    config: BuildConfig,
    adapters: Sequence[ResolvedAdapter],
    *,
    output: Path,
    tell: Progress,
    judged: Judged = "all",
) -> Outcome:
    """Merge the adapters, then verify and measure what the recipe asks for.

    Args:
        export_dir: The export, or the folder that becomes it.
        recipe: What to build.
        config: Task, dtype and interface.
        adapters: The adapters.
        output: Where the export is or will be.
        tell: Told what happens.
        judged: The graphs that are verified, where the recipe asks for it.

    Raises:
        LoraExportError: See the class of the error.
    """
    if recipe.mode is Mode.SWAPPABLE and export_dir != output:
        from lora_export.exports.packs import add_swappable_graph

        resolved = [each.resolved for each in without_copies_in(export_dir, adapters)]
        add_swappable_graph(export_dir, resolved, modules=recipe.lora_modules)
    added = add_adapters(
        export_dir,
        adapters,
        output=output,
        checkpoint=config.exported,
        replace=export_dir == output,
        progress=tell,
        mode=recipe.mode,
    )
    if added.fidelity:
        from lora_export.verification.record import record_fidelity

        record_fidelity(export_dir, added.fidelity)
    parity, losses = _verify(export_dir, recipe, config, adapters, tell, judged=judged)
    reports = Reports(
        fidelity_report_of(added),
        config.own_graph.report if config.own_graph is not None else None,
        parity,
        _measure(export_dir, recipe, config, adapters, tell),
        quantization=losses,
    )
    return Outcome(output, refresh_report(export_dir), reports)


def _graphs(recipe: Recipe, adapters: Sequence[ResolvedAdapter]) -> list[str]:
    """Return the graphs that hold the adapters: one of all, or one of each."""
    if recipe.mode in SHARED_MODES:
        return [recipe.mode.value]
    return [each.resolved.adapter.name for each in adapters]


def _verify(
    export_dir: Path,
    recipe: Recipe,
    config: BuildConfig,
    adapters: Sequence[ResolvedAdapter],
    tell: Progress,
    *,
    judged: Judged,
) -> tuple[ParityReport | None, QuantizationReport | None]:
    """Compare the graphs with unmerged PEFT, if the recipe asks for it."""
    asked = recipe.verify
    if not asked.enabled:
        return None, None
    from lora_export.commands.loss_limits import loss_gates
    from lora_export.verification.export import Evidence, verify_export

    named = {each.resolved.adapter.name: each.resolved.adapter for each in adapters}
    evidence = Evidence(
        checkpoint=config.checkpoint,
        adapters=named,
        only=named.keys(),  # what is recorded of others in the export stays
        dataset=recipe.path(asked.dataset) if asked.dataset else None,
        metric=asked.metric,
        max_new_tokens=asked.max_new_tokens,
        seed=asked.seed,
        allow_no_effect=asked.allow_no_effect,
        gates=loss_gates(asked.min_gain, asked.max_loss, asked.max_metric_drop),
    )
    graphs = [] if judged == "base" else _graphs(recipe, adapters)
    if judged != "adapters" or not _base_is_settled(export_dir):
        graphs = [BASE_GRAPH, *graphs]
    return verify_export(export_dir, graphs, evidence, tell)


def _base_is_settled(export_dir: Path) -> bool:
    """Return whether the base graph has passed, or lacks a head, which leaves nothing to verify."""
    base = read_manifest(export_dir).base_graph
    passed = base.verification == "pass" and base.loss in {None, "pass", "ungated"}
    return passed or bool(base.missing)


def _measure(
    export_dir: Path,
    recipe: Recipe,
    config: BuildConfig,
    adapters: Sequence[ResolvedAdapter],
    tell: Progress,
) -> LatencyReport | None:
    """Time adapters against the base.

    Merged graphs are measured unless the recipe says otherwise, for they promise the base's
    latency; inputs and rows cost something, and are measured where the recipe asks for it.
    """
    latency = recipe.latency
    shared = recipe.mode in SHARED_MODES
    asked = not latency.model_fields_set.isdisjoint({"enabled", "max_ratio"})
    if not latency.enabled or (shared and not asked) or not (adapters or shared):
        return None
    from lora_export.verification.export import measure_latency

    _, timed = measure_latency(
        export_dir,
        _graphs(recipe, adapters),
        config.checkpoint.config,
        batch=latency.batch,
        length=latency.length,
        rounds=latency.rounds,
        max_ratio=latency.max_ratio,
        seed=recipe.verify.seed,
        progress=tell,
    )
    return timed
