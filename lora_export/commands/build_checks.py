"""Checks before a build begins: its mode, its runtimes, its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.adapters.early_checks import refuse_misfit, vocabulary_by_headers
from lora_export.adapters.rows_without_bias import refuse_rows_without_bias
from lora_export.commands.adapter_inputs import recorded_source
from lora_export.commands.build_config import target_of
from lora_export.commands.build_float4 import require_float4
from lora_export.commands.build_form import opset_of_form, require_form
from lora_export.commands.build_layouts import require_layouts
from lora_export.commands.bundle import require_bundle
from lora_export.commands.loss_limits import require_limits
from lora_export.commands.quantize_choice import record_of, require_blocks, require_scales
from lora_export.core.errors import ExportDirectoryError, UnsupportedError, UsageError
from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import GraphSource, Manifest, is_export, read_manifest
from lora_export.core.modes import SHARED_MODES, Mode
from lora_export.exports.plan import head_parameters, match_base
from lora_export.exports.stored_adapters import form_of, mode_of
from lora_export.weights.base_match import require_known_base
from lora_export.weights.residual import require_residual_base

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.commands.adapter_inputs import LoadedAdapter
    from lora_export.commands.build_config import BuildConfig
    from lora_export.commands.recipe import Recipe
    from lora_export.commands.resolved_adapters import ResolvedAdapter
    from lora_export.core.name_conversions import Conversion
    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.tasks import Task
    from lora_export.weights.checkpoint import Checkpoint

__all__ = [
    "existing_export",
    "graph_source",
    "require_bases",
    "require_layers",
    "require_mode",
    "require_one_graph",
    "require_recipe",
    "require_runtimes",
    "require_same_base",
]


def require_recipe(recipe: Recipe) -> None:
    """Require what the recipe alone tells: settings that go together, and their libraries.

    Raises:
        UsageError: Two settings contradict each other.
        UnsupportedError: The mode, or the bundle, cannot be made.
        MissingRuntimeError: A library is not installed.
    """
    _require_open_choices(recipe)
    asked = recipe.verify
    require_limits(
        asked.min_gain, asked.max_loss, asked.max_metric_drop,
        is_quantized=recipe.quantize is not None, has_dataset=asked.dataset is not None,
    )  # fmt: skip
    require_mode(recipe)
    require_form(recipe, target_of(recipe))
    require_float4(recipe)
    require_blocks(recipe.quantize, recipe.opset, target_of(recipe))
    require_scales(recipe.quantize, target_of(recipe))
    require_runtimes(recipe)
    require_bundle(recipe)
    require_layouts(recipe)


def existing_export(output: Path) -> Manifest | None:
    """Return the manifest of what is at `output`; None where nothing is there yet."""
    if is_export(output):
        return read_manifest(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        msg = f"{str(output)!r} exists and is not an export directory"
        raise ExportDirectoryError(msg, hint="Choose another --out; nothing was changed.")
    return None


def require_same_base(
    existing: Manifest, config: BuildConfig, digest: str, output: Path, recipe: Recipe
) -> None:
    """Require that the export at `output` is of the recipe's base, task, mode and interface."""
    source, base, choices = graph_source(recipe, output), existing.base, config.choices
    rows: list[tuple[str, object, object]] = [
        ("mode", mode_of(existing), recipe.mode),
        ("base", base.fingerprint, digest),
        ("task", base.task, config.task.name),
        ("pooling", base.pooling, _pooling(config)),
        ("graph form", form_of(existing), recipe.graph_form),
        ("quantization", base.quantization, record_of(recipe.quantize)),
        (
            "graph",
            base.graph.sha256 if base.graph else "traced",
            source.sha256 if source else "traced",
        ),
    ]
    if source is None:  # a graph of the user's has its own
        rows.append(("dtype", base.dtype, config.dtype))
        if opset_of_form(recipe.graph_form) is None:
            rows.append(("opset", existing.base_graph.opset, config.opset))
        rows.append(("cache", base.cache, choices.cache))
        rows.append(("cache length", base.cache_length, choices.cache_length))
        rows.append(("logits", base.logits, choices.logits))
    for what, old, new in rows:
        if old != new:
            msg = f"{str(output)!r} is an export of another {what}: {old}, not {new}"
            raise ExportDirectoryError(msg, hint="Choose another --out, or remove that directory.")


def graph_source(recipe: Recipe, output: Path) -> GraphSource | None:
    """Return the manifest's record of the user's graph."""
    if recipe.graph is None:
        return None
    path = recipe.path(recipe.graph)
    return GraphSource(source=recorded_source(path, output), sha256=sha256_of_file(path))


def _pooling(config: BuildConfig) -> str | None:
    """Return the modules that follow the token states, as the manifest records them."""
    sentence = config.checkpoint.sentence
    return None if sentence is None else str(sentence)


def require_bases(
    ready: Sequence[ResolvedAdapter],
    parameters: Sequence[Parameter],
    prefix: str,
    conversions: Sequence[Conversion],
    config: BuildConfig,
) -> None:
    """Require that the base is the one that each adapter was made for, as far as it tells.

    Raises:
        AdapterError: An adapter records another base.
        UnsupportedError: Its initialisation changed its base, and this is not the changed one; or
            it trains rows of a head whose bias PEFT leaves out.
    """
    checkpoint = config.exported
    sources = match_base(
        parameters,
        prefix,
        checkpoint.tensors,
        conversions=conversions,
        resizable=head_parameters(config.task),
    ).sources
    for each in ready:
        for adapter in each.given.originals:
            require_known_base(adapter, checkpoint.tensors, prefix, checkpoint.source)
        require_residual_base(each.resolved, sources, checkpoint.source)
        refuse_rows_without_bias(each.resolved, sources)


def require_layers(given: Sequence[LoadedAdapter], config: BuildConfig, mode: Mode) -> None:
    """Require, by headers alone and before anything is traced, that the adapters' layers are there.

    Raises:
        AdapterError: As `resolve` would raise it once the graph is there.
        UnsupportedError: An adapter changes the number of tokens of a graph that adapters share.
    """
    checkpoint = config.checkpoint
    for each in given:
        if mode in SHARED_MODES:
            _refuse_unshared(each, checkpoint)
        refuse_misfit(each.adapter, checkpoint.tensors, checkpoint.config, drop=each.spec.drop)


def _refuse_unshared(given: LoadedAdapter, checkpoint: Checkpoint) -> None:
    """Refuse an adapter that a graph cannot share with others."""
    from lora_export.exports.values import refuse_computed, refuse_vocabulary

    refuse_computed(given.adapter)
    vocabulary = vocabulary_by_headers(
        given.adapter, checkpoint.tensors, checkpoint.config, drop=given.spec.drop
    )
    refuse_vocabulary(given.adapter.name, vocabulary)


def _require_open_choices(recipe: Recipe) -> None:
    """Refuse choices that the user's own graph has made already."""
    chosen = {
        "dtype": recipe.dtype,
        "opset": recipe.opset,
        "cache": recipe.cache,
        "cache_length": recipe.cache_length,
        "logits": recipe.logits,
    }
    if recipe.graph is not None and any(chosen.values()):
        key = next(key for key, value in chosen.items() if value)
        flag = f"--{key.replace('_', '-')}"
        msg = f"{flag} ({key}) cannot be combined with --graph (graph)"
        raise UsageError(msg, hint="The graph determines its dtype, opset, cache and logits.")


def require_mode(recipe: Recipe) -> None:
    """Require what the recipe's mode needs, and nothing that belongs to another."""
    if recipe.lora_modules is not None and recipe.mode is not Mode.SWAPPABLE:
        msg = "--lora-modules (lora_modules) needs --mode (mode) swappable"
        hint = "Set --mode (mode) to swappable, or leave --lora-modules (lora_modules) out."
        raise UsageError(msg, hint=hint)
    if recipe.mode in _EMPTY and not recipe.adapters and not recipe.lora_modules:
        msg, hint = _EMPTY[recipe.mode]
        raise UsageError(msg, hint=hint)


_EMPTY: Final[Mapping[Mode, tuple[str, str]]] = {
    Mode.SWAPPABLE: (
        "a swappable graph needs adapters, or the names of the modules that can be adapted",
        "Add --adapter (adapters), or --lora-modules (lora_modules) such as q_proj,v_proj.",
    ),
    Mode.BATCHED: (
        "a batched graph needs adapters",
        "Add --adapter (adapters); others can be added later.",
    ),
}
"""The modes that need an adapter to begin with, and the error and its hint without one."""


def require_one_graph(recipe: Recipe, task: Task) -> None:
    """Refuse what is not done for an encoder and a decoder, which are two graphs."""
    asked = {
        "--graph (graph)": recipe.graph is not None,
        f"--mode (mode) {recipe.mode}": recipe.mode is not Mode.MERGED,
    }
    for flag, given in asked.items():
        if given and task.encoder_decoder:
            msg = f"{flag} does not apply to {task.name}, which is exported as two graphs"
            hint = "Leave --graph (graph) out, and export merged adapters: the mode merged."
            raise UnsupportedError(msg, hint=hint)


def require_runtimes(recipe: Recipe) -> None:
    """Ask for what the verification needs before the work begins, not after."""
    if recipe.verify.enabled:
        from lora_export.runtime.reference import require_reference
        from lora_export.verification.datasets.text_scores import require_library

        require_reference()
        require_library(recipe.verify.metric if recipe.verify.dataset else None)
    if recipe.verify.enabled or recipe.latency.enabled:
        from lora_export.runtime.ort import require_onnxruntime

        require_onnxruntime()
