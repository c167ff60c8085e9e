"""The whole story on one page: from a base and its adapters to a verified export directory.

    recipe → checkpoint + adapters → graph (weight-free) → deltas (all resolved) → weights
           → export directory → parity → latency

Each stage is a function of the layers below; configuration stops here.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_export.base import targets
from lora_export.base.errors import (
    ExportDirectoryError,
    TiedParameterError,
    UnsupportedError,
    UsageError,
)
from lora_export.base.files import move_into_place, sha256_of_file, staging_folder
from lora_export.base.hub import local_path
from lora_export.base.manifest import GraphSource, Manifest, is_export, read_manifest
from lora_export.base.progress import Progress, Silent
from lora_export.exports.create import create_export
from lora_export.exports.extend import parameters_of
from lora_export.exports.own_graph import OwnGraph, adopt_graph, require_in_graph
from lora_export.exports.packs import SWAPPABLE, add_swappable_graph
from lora_export.exports.plan import (
    choose_dtype,
    count_labels,
    for_task,
    head_parameters,
    match_base,
    require_complete,
    untie,
)
from lora_export.exports.stacks import BATCHED
from lora_export.graph import tasks
from lora_export.graph.export import export_graph
from lora_export.graph.signature import Choices
from lora_export.parts import Given, read_specs, recorded_source
from lora_export.runtime.ort import require_onnxruntime
from lora_export.runtime.reference import require_reference
from lora_export.steps import (
    Outcome,
    Ready,
    add_all,
    checked_labels,
    prepare,
)
from lora_export.verify.export import Evidence, measure_latency, verify_export
from lora_export.weights.base_match import require_known_base
from lora_export.weights.checkpoint import Checkpoint, open_checkpoint
from lora_export.weights.fingerprint import fingerprint
from lora_export.weights.residual import require_residual_base
from lora_export.weights.sentence import pools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.base.conversions import Conversion
    from lora_export.base.parameters import Parameter
    from lora_export.base.targets import Target
    from lora_export.graph.tasks import Task
    from lora_export.graph.template import GraphTemplate
    from lora_export.recipe import Recipe

__all__ = ["merge_and_build"]


@dataclass(frozen=True)
class _Settings:
    """What the recipe leaves open, decided from the files.

    Attributes:
        checkpoint: The base, as it is on disk: the reference of the verification.
        task: The task.
        dtype: The dtype of the export.
        opset: The opset.
        choices: The interface of a decoder.
        untied: The base with a tensor for each name of a tied weight, where an adapter changes one
            of them only; None otherwise.
        own_graph: The user's graph, where there is one; it decides dtype, opset and interface.
    """

    checkpoint: Checkpoint
    task: Task
    dtype: str
    opset: int
    choices: Choices
    untied: Checkpoint | None = None
    own_graph: OwnGraph | None = None

    @property
    def exported(self) -> Checkpoint:
        """The base that the graph is traced from, and whose tensors are written."""
        return self.untied or self.checkpoint


def merge_and_build(recipe: Recipe, progress: Progress | None = None) -> Outcome:
    """Build the export directory that `recipe` describes, and verify it as far as it asks to.

    A new directory appears complete or not at all. An existing export of the same base receives the
    recipe's adapters, and keeps those that it holds under other names.

    Raises:
        LoraExportError: See the class of the error; nothing half-written is left.
    """
    tell = progress or Silent()
    if recipe.graph is not None and (recipe.dtype or recipe.opset or recipe.cache or recipe.logits):
        msg = "a graph of your own has its dtype, opset, cache and logits"
        raise UsageError(msg, hint="Leave these flags out, or --graph.")
    _require_mode(recipe)
    output = _readable(recipe.path(recipe.output))
    _require_runtimes(recipe)
    existing = _existing_export(output)
    checkpoint = open_checkpoint(local_path(recipe.base, recipe.folder), source=recipe.base)
    given = read_specs(
        recipe.adapters, recipe.folder, recipe.combine, base_config=checkpoint.config
    )
    adapters = [each.adapter for each in given]
    settings = _settle(recipe, checkpoint, adapters)
    _require_one_graph(recipe, settings.task)
    with _in_background(checkpoint) as fingerprinted:
        if existing is not None:
            _require_same_base(existing, settings, fingerprinted(), output, recipe)
            ready = prepare(
                given,
                parameters_of(existing),
                prefix=existing.base.prefix,
                conversions=existing.base.conversions,
                task=settings.task,
                labels=recipe.labels,
            )
            _require_bases(
                ready,
                parameters_of(existing),
                existing.base.prefix,
                existing.base.conversions,
                settings,
            )
            return _finish(output, output, ready=ready, settings=settings, recipe=recipe, tell=tell)
        settings, template, ready = _graph_and_updates(recipe, settings, given, tell)
        _require_bases(ready, template.parameters, template.prefix, template.conversions, settings)
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
            outcome = _finish(
                staging, output, ready=ready, settings=settings, recipe=recipe, tell=tell
            )
            _publish(staging, output)
    return outcome


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


def _readable(path: Path) -> Path:
    """Return the path relative to the working directory where it is below it, else absolute."""
    whole, here = path.resolve(), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def _target(recipe: Recipe) -> Target:
    return targets.by_name(recipe.targets[0] if recipe.targets else targets.DEFAULT_TARGET)


def _settle(recipe: Recipe, checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> _Settings:
    """Decide task, dtype and opset."""
    target = _target(recipe)
    peft_types = tuple(adapter.task_type for adapter in adapters)
    task = (
        tasks.by_name(recipe.task)
        if recipe.task
        else tasks.detect(checkpoint.config, peft_types, pools=pools(checkpoint.folder))
    )
    return _Settings(
        for_task(checkpoint, task),
        task,
        choose_dtype(checkpoint, recipe.dtype, target),
        recipe.opset or target.opset,
        _choices(recipe, task),
    )


def _choices(recipe: Recipe, task: Task) -> Choices:
    """Return the interface that is asked for; a decoder has a cache unless told otherwise."""
    for key, value in (("cache", recipe.cache), ("logits", recipe.logits)):
        asked = value is not None if task.encoder_decoder else bool(value)
        if asked and not task.causal:
            msg = f"the task {task.name!r} has no {key} to choose"
            raise UsageError(msg, hint=f"Leave {key} (--{key}) out; it is for text-generation.")
    cache = task.encoder_decoder or (task.causal and recipe.cache is not False)
    return Choices(cache=cache, logits=recipe.logits or "all")


def _graph_and_updates(
    recipe: Recipe, settings: _Settings, given: Sequence[Given], tell: Progress
) -> tuple[_Settings, GraphTemplate, tuple[Ready, ...]]:
    """Export the graph and resolve the adapters; untie what an adapter changes on one side only."""
    adapters = [each.adapter for each in given]

    def ready(template: GraphTemplate) -> tuple[Ready, ...]:
        return prepare(
            given,
            template.parameters,
            prefix=template.prefix,
            conversions=template.conversions,
            task=settings.task,
            labels=recipe.labels,
        )

    if recipe.graph is not None:
        settings, template = _own_graph(recipe, settings, given, tell)
        try:
            return settings, template, ready(template)
        except TiedParameterError as error:
            hint = f"In {recipe.graph!r} they cannot be changed apart: export one that holds both."
            raise UnsupportedError(error.message, hint=hint) from error
    template = _export_graph(settings, adapters, tell)
    try:
        return settings, template, ready(template)
    except TiedParameterError:
        if settings.task.encoder_decoder:  # of T5, the tie decides a scale too
            raise
        untied = untie(settings.checkpoint, template.parameters, template.conversions)
        settings = replace(settings, untied=untied)
        template = _export_graph(settings, adapters, tell)
        return settings, template, ready(template)


def _own_graph(
    recipe: Recipe, settings: _Settings, given: Sequence[Given], tell: Progress
) -> tuple[_Settings, GraphTemplate]:
    """Read the user's graph, and require that the adapters' parameters are in it."""
    tell.start("graph")
    path = recipe.path(recipe.graph or "")
    graph = adopt_graph(path, settings.checkpoint, [each.adapter for each in given])
    for each in given:
        require_in_graph(graph, each.adapter, each.spec.drop)
    dtype = choose_dtype(settings.checkpoint, graph.dtype, _target(recipe))
    if recipe.task is None and settings.task.output not in graph.output_names:
        settings = _without_pooling(settings, [each.adapter for each in given])
    decided = replace(
        settings,
        dtype=dtype,
        opset=graph.template.opset,
        choices=Choices(cache=graph.has_cache),
        own_graph=graph,
    )
    return decided, graph.template


def _without_pooling(settings: _Settings, adapters: Sequence[Adapter]) -> _Settings:
    """Return the settings for a graph that ends before the pooling of its checkpoint."""
    if not settings.task.pooled:
        return settings
    checkpoint = replace(settings.checkpoint, sentence=None)
    peft_types = tuple(adapter.task_type for adapter in adapters)
    return replace(
        settings, checkpoint=checkpoint, task=tasks.detect(checkpoint.config, peft_types)
    )


def _export_graph(
    settings: _Settings, adapters: Sequence[Adapter], tell: Progress
) -> GraphTemplate:
    tell.start("graph")
    config = settings.exported.config
    return export_graph(
        config,
        settings.task,
        dtype=settings.dtype,
        opset=settings.opset,
        labels_count=count_labels(settings.task, config, adapters, settings.exported.tensors),
        choices=settings.choices,
        sentence=settings.exported.sentence,
    )


def _create(
    staging: Path,
    output: Path,
    *,
    template: GraphTemplate,
    ready: Sequence[Ready],
    settings: _Settings,
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
    labels = (
        checked_labels(settings.task, template.parameters, recipe.labels) if not ready else None
    )
    create_export(
        staging,
        checkpoint,
        template,
        plan,
        source=recorded_source(checkpoint.folder, output),
        task=settings.task.name,
        dtype=settings.dtype,
        choices=settings.choices,
        labels=ready[0].labels if ready else labels,
        fingerprint=fingerprinted,
        progress=tell,
        graph_source=_graph_source(recipe, output),
        graph_report=own.report if own is not None else None,
    )


def _require_bases(
    ready: Sequence[Ready],
    parameters: Sequence[Parameter],
    prefix: str,
    conversions: Sequence[Conversion],
    settings: _Settings,
) -> None:
    """Require that the base is the one that each adapter was made for, as far as it tells."""
    checkpoint = settings.exported
    sources = match_base(
        parameters,
        prefix,
        checkpoint.tensors,
        conversions=conversions,
        resizable=head_parameters(settings.task),
    ).sources
    for each in ready:
        for adapter in each.given.originals:
            require_known_base(adapter, checkpoint.tensors, prefix, checkpoint.source)
        require_residual_base(each.resolved, sources, checkpoint.source)


def _pooling(settings: _Settings) -> str | None:
    """Return what follows the states of the tokens, as the manifest records it."""
    sentence = settings.checkpoint.sentence
    return None if sentence is None else str(sentence)


def _graph_source(recipe: Recipe, output: Path) -> GraphSource | None:
    """Return what the manifest says of the user's graph."""
    if recipe.graph is None:
        return None
    path = recipe.path(recipe.graph)
    return GraphSource(source=recorded_source(path, output), sha256=sha256_of_file(path))


def _existing_export(output: Path) -> Manifest | None:
    """Return the manifest of what is at `output`; None where nothing is there yet."""
    if is_export(output):
        return read_manifest(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        msg = f"{str(output)!r} exists and is not an export directory"
        raise ExportDirectoryError(msg, hint="Choose another --out; nothing was changed.")
    return None


def _require_same_base(
    existing: Manifest, settings: _Settings, digest: str, output: Path, recipe: Recipe
) -> None:
    source, base, choices = _graph_source(recipe, output), existing.base, settings.choices
    rows: list[tuple[str, object, object]] = [
        ("mode", _mode(existing), recipe.mode),
        ("base", base.fingerprint, digest),
        ("task", base.task, settings.task.name),
        ("pooling", base.pooling, _pooling(settings)),
        (
            "graph",
            base.graph.sha256 if base.graph else "traced",
            source.sha256 if source else "traced",
        ),
    ]
    if source is None:  # a graph of the user's has its own
        rows.append(("dtype", base.dtype, settings.dtype))
        rows.append(("opset", existing.graphs["base"].opset, settings.opset))
        rows.append(("cache", base.cache, choices.cache))
        rows.append(("logits", base.logits, choices.logits))
    for what, old, new in rows:
        if old != new:
            msg = f"{str(output)!r} is an export of another {what}: {old}, not {new}"
            raise ExportDirectoryError(msg, hint="Choose another --out, or remove that directory.")


def _finish(
    root: Path,
    output: Path,
    *,
    ready: Sequence[Ready],
    settings: _Settings,
    recipe: Recipe,
    tell: Progress,
) -> Outcome:
    """Merge the adapters, verify and measure what the recipe asks for."""
    checkpoint = settings.checkpoint
    swappable, batched = recipe.mode == SWAPPABLE, recipe.mode == BATCHED
    if swappable and root != output:
        resolved = [each.resolved for each in ready]
        add_swappable_graph(root, resolved, modules=recipe.lora_modules)
    manifest, reports = add_all(
        root,
        ready,
        output=output,
        checkpoint=settings.exported,
        replace=root == output,
        progress=tell,
        batched=batched,
    )
    if settings.own_graph is not None:
        reports["graph"] = settings.own_graph.report
    adapters = {each.resolved.adapter.name: each.resolved.adapter for each in ready}
    if recipe.verify.enabled:
        evidence = Evidence(
            checkpoint=checkpoint,
            adapters=adapters,
            dataset=recipe.path(recipe.verify.dataset) if recipe.verify.dataset else None,
            seed=recipe.verify.seed,
            allow_no_effect=recipe.verify.allow_no_effect,
        )
        names = ["base", *([recipe.mode] if swappable or batched else adapters)]
        manifest, reports["parity"] = verify_export(root, names, evidence, tell)
    latency = recipe.latency
    gated = not batched or "max_ratio" in latency.model_fields_set  # rows cost what they cost
    if latency.enabled and gated and (adapters or swappable):
        manifest, reports["latency"] = measure_latency(
            root,
            [recipe.mode] if swappable or batched else list(adapters),
            checkpoint.config,
            batch=latency.batch,
            length=latency.length,
            rounds=latency.rounds,
            max_ratio=latency.max_ratio,
            seed=recipe.verify.seed,
            progress=tell,
        )
    return Outcome(output, manifest, reports)


def _mode(manifest: Manifest) -> str:
    """Return how an export holds its adapters."""
    return next((mode for mode in (SWAPPABLE, BATCHED) if mode in manifest.graphs), "merged")


def _require_mode(recipe: Recipe) -> None:
    if recipe.mode == BATCHED and not recipe.adapters:
        msg = "a batched graph needs adapters"
        raise UsageError(msg, hint="Give --adapter; others can be added later.")
    if recipe.lora_modules is not None and recipe.mode != SWAPPABLE:
        msg = "lora_modules (--lora-modules) says what a swappable graph can adapt"
        raise UsageError(msg, hint="Add --mode swappable, or leave it out.")
    if recipe.mode == SWAPPABLE and not recipe.adapters and not recipe.lora_modules:
        msg = "a swappable graph needs adapters, or the names of the modules that can be adapted"
        raise UsageError(msg, hint="Give --adapter, or --lora-modules q_proj,v_proj.")


def _require_one_graph(recipe: Recipe, task: Task) -> None:
    """Refuse what is not done for an encoder and a decoder, which are two graphs."""
    asked = {"--graph": recipe.graph is not None, f"--mode {recipe.mode}": recipe.mode != "merged"}
    for flag, given in asked.items():
        if given and task.encoder_decoder:
            msg = f"{task.name} is exported as two graphs, an encoder and a decoder: no {flag}"
            raise UnsupportedError(msg, hint="Export merged adapters: --mode merged.")


def _require_runtimes(recipe: Recipe) -> None:
    """Ask for what the verification needs before the work begins, not after."""
    if recipe.verify.enabled:
        require_reference()
    if recipe.verify.enabled or recipe.latency.enabled:
        require_onnxruntime()


def _publish(staging: Path, output: Path) -> None:
    """Move the finished directory into place."""
    try:
        move_into_place(staging, output)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        msg = f"another process has written {str(output)!r} meanwhile"
        raise ExportDirectoryError(
            msg, hint="Run again: the adapters are then added to that export."
        ) from error
