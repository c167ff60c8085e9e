"""The config that a recipe leaves open, chosen from the files: task, dtype, opset, graph.

recipe + checkpoint + adapters → `BuildConfig` → graph (traced, or the user's own) + updates
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from lora_export.adapters.ties import groups_of
from lora_export.commands.build_form import in_form, opset_of_form, traced_opset
from lora_export.commands.quantize_choice import opset_for
from lora_export.commands.resolved_adapters import ResolvedAdapter, resolve_adapters
from lora_export.core import targets
from lora_export.core.errors import TiedParameterError, UnsupportedError, UsageError
from lora_export.core.graph_forms import DEFAULT_FORM, GraphForm
from lora_export.exports.config_fit import require_sizes_of_config
from lora_export.exports.padding import with_padding_of
from lora_export.exports.plan import choose_dtype, count_labels, for_task, head_parameters
from lora_export.exports.untied_export import ties_in_graph, untie
from lora_export.graph.graph_export import export_graph
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import Choices
from lora_export.weights.pooling_source import agreed_pooling, pooling_of
from lora_export.weights.sentence import has_pooling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.ties import TieGroup
    from lora_export.commands.adapter_inputs import LoadedAdapter
    from lora_export.commands.recipe import Recipe
    from lora_export.core.progress import Progress
    from lora_export.core.targets import Target
    from lora_export.exports.own_graph import OwnGraph
    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import GraphTemplate
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["BuildConfig", "graph_and_updates", "resolve_config", "target_of"]

_CLASSIFICATION: Final = "text-classification"


@dataclass(frozen=True)
class BuildConfig:
    """The choices that the recipe leaves open, made from the files.

    Attributes:
        checkpoint: The base, as it is on disk: the reference of the verification.
        task: The task.
        dtype: The dtype of the export.
        opset: The opset.
        choices: The interface of a decoder.
        untied: The base with a tensor for each name of a tied weight, where an adapter changes one
            of them only; None otherwise.
        ties: The names of these weights, or of those that the user's graph holds apart.
        form: The form of the graph.
        own_graph: The user's graph, where there is one; it decides dtype, opset and interface.
    """

    checkpoint: Checkpoint
    task: Task
    dtype: str
    opset: int
    choices: Choices
    untied: Checkpoint | None = None
    ties: tuple[TieGroup, ...] = ()
    own_graph: OwnGraph | None = None
    form: GraphForm = DEFAULT_FORM

    @property
    def exported(self) -> Checkpoint:
        """The base that the graph is traced from, and whose tensors are written."""
        return self.untied or self.checkpoint


def resolve_config(
    recipe: Recipe, checkpoint: Checkpoint, adapters: Sequence[Adapter]
) -> BuildConfig:
    """Decide task, dtype and opset."""
    target = target_of(recipe)
    peft_types = tuple(adapter.task_type for adapter in adapters)
    task = (
        tasks.by_name(recipe.task)
        if recipe.task
        else tasks.detect(checkpoint.config, peft_types, pools=_pools(checkpoint, adapters))
    )
    if task.name == _CLASSIFICATION:
        checkpoint = with_padding_of(checkpoint, adapters)
    pooling = agreed_pooling(checkpoint.folder, adapters) if task.pooled else None
    return BuildConfig(
        for_task(checkpoint, task, pooling),
        task,
        choose_dtype(checkpoint, recipe.dtype, target),
        opset_of_form(recipe.graph_form)
        or recipe.opset
        or opset_for(recipe.quantize, target.opset),
        _choices(recipe, task),
        form=recipe.graph_form,
    )


def _pools(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> bool:
    """Return whether a pooling lies beside the base or one of the adapters."""
    return has_pooling(checkpoint.folder) or any(pooling_of(each) is not None for each in adapters)


def target_of(recipe: Recipe) -> Target:
    """Return where the graph of a recipe is to run."""
    return targets.by_name(recipe.targets[0] if recipe.targets else targets.DEFAULT_TARGET)


def _choices(recipe: Recipe, task: Task) -> Choices:
    """Return the interface that is asked for; a decoder has a cache unless told otherwise."""
    keys = {"cache": recipe.cache, "cache_length": recipe.cache_length, "logits": recipe.logits}
    for key, value in keys.items():
        asked = value is not None if task.encoder_decoder else bool(value)
        if asked and not task.causal:
            flag = "--no-cache" if value is False else f"--{key.replace('_', '-')}"
            msg = f"{flag} ({key}) does not apply to the task {task.name!r}"
            raise UsageError(msg, hint="Leave it out; it is for text-generation.")
    if recipe.cache is False and recipe.cache_length is not None:
        msg = "--cache-length (cache_length) and --no-cache (cache) contradict each other"
        raise UsageError(msg, hint="Leave one of them out.")
    cache = task.encoder_decoder or (task.causal and recipe.cache is not False)
    return Choices(cache, recipe.logits or "all", recipe.cache_length)


def graph_and_updates(
    recipe: Recipe, config: BuildConfig, given: Sequence[LoadedAdapter], tell: Progress
) -> tuple[BuildConfig, GraphTemplate, tuple[ResolvedAdapter, ...]]:
    """Export the graph and resolve the adapters; untie what an adapter changes on one side only."""
    adapters = [each.adapter for each in given]

    def ready(
        template: GraphTemplate, ties: Sequence[TieGroup] = ()
    ) -> tuple[ResolvedAdapter, ...]:
        return resolve_adapters(
            given,
            template.parameters,
            prefix=template.prefix,
            conversions=template.conversions,
            config=config.checkpoint.config,
            task=config.task,
            labels=recipe.labels,
            ties=ties,
        )

    if recipe.graph is not None:
        config, template = _own_graph(recipe, config, given, tell)
        try:
            return config, template, ready(template, config.ties)
        except TiedParameterError as error:
            hint = f"In {recipe.graph!r} they cannot be changed apart: export one that holds both."
            raise UnsupportedError(error.message, hint=hint) from error
    template = _export_graph(config, adapters, tell)
    try:
        return config, template, ready(template)
    except TiedParameterError:
        ties = groups_of(template.parameters, held=True, model_class=template.model_class)
        config = replace(config, untied=untie(config.checkpoint, template), ties=ties)
        template = _export_graph(config, adapters, tell)
        return config, template, ready(template, ties)


def _own_graph(
    recipe: Recipe, config: BuildConfig, given: Sequence[LoadedAdapter], tell: Progress
) -> tuple[BuildConfig, GraphTemplate]:
    """Read the user's graph, and require that the adapters' parameters are in it."""
    from lora_export.exports.own_graph import adopt_graph, require_in_graph

    tell.start("reading the graph")
    path = recipe.path(recipe.graph or "")
    graph = adopt_graph(path, config.checkpoint, [each.adapter for each in given])
    for each in given:
        require_in_graph(graph, each.adapter, each.spec.drop)
    dtype = choose_dtype(config.checkpoint, graph.dtype, target_of(recipe))
    if recipe.task is None and config.task.output not in graph.output_names:
        config = _without_pooling(config, [each.adapter for each in given])
    decided = replace(
        config,
        dtype=dtype,
        opset=graph.template.opset,
        choices=graph.choices if config.task.causal else Choices(cache=graph.choices.cache),
        own_graph=graph,
        ties=ties_in_graph(graph.plan.sources, config.checkpoint.config),
    )
    return decided, graph.template


def _without_pooling(config: BuildConfig, adapters: Sequence[Adapter]) -> BuildConfig:
    """Return the config for a graph that ends before the pooling of its checkpoint."""
    if not config.task.pooled:
        return config
    checkpoint = replace(config.checkpoint, sentence=None)
    peft_types = tuple(adapter.task_type for adapter in adapters)
    return replace(config, checkpoint=checkpoint, task=tasks.detect(checkpoint.config, peft_types))


def _export_graph(
    config: BuildConfig, adapters: Sequence[Adapter], tell: Progress
) -> GraphTemplate:
    base = config.exported
    template = export_graph(
        base.config,
        config.task,
        dtype=config.dtype,
        opset=traced_opset(config.form, config.opset),
        labels_count=count_labels(config.task, base.config, adapters, base.tensors),
        choices=config.choices,
        sentence=base.sentence,
        untied=config.untied is not None,
        progress=tell,
        require=partial(
            require_sizes_of_config,
            tensors=base.tensors,
            resizable=head_parameters(config.task),
            adapters=adapters,
        ),
    )
    return in_form(config.form, template, base.config, tell)
