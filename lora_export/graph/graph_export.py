"""From a config to a graph template: from a shipped template, from the cache, or traced once.

This module imports no torch: what traces is imported when neither has an answer.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import MissingRuntimeError, UsageError
from lora_export.core.garbage import fewer_collections
from lora_export.core.installation import install_command
from lora_export.core.progress import Progress, Silent
from lora_export.core.supported_versions import require_supported
from lora_export.graph import graph_cache
from lora_export.graph.cached_requests import Request
from lora_export.graph.spec.signature import Choices
from lora_export.graph.templates.matching import NoTemplateError
from lora_export.graph.templates.shipped import from_template

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import GraphTemplate, Requirement
    from lora_export.weights.sentence_head import SentenceHead

__all__ = ["export_graph", "settings_of"]

_DEFAULTS: Final = Choices()
_TRACING_PACKAGES: Final = ("torch", "transformers", "accelerate", "onnxscript")
_TRACING_DISTRIBUTIONS: Final = (*_TRACING_PACKAGES, "onnx-ir", "onnx")
_NOT_IN_GRAPH: Final = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "transformers_version",
        "architectures",
        "torch_dtype",
        "dtype",
        "id2label",
        "label2id",
        "finetuning_task",
        "task_specific_params",
        "auto_map",
        "quantization_config",
        "gradient_checkpointing",
    }
)
"""Settings of a config that leave the graph as it is."""


def export_graph(
    config: Mapping[str, Any],
    task: Task,
    *,
    dtype: str,
    opset: int,
    labels_count: int | None,
    choices: Choices = _DEFAULTS,
    sentence: SentenceHead | None = None,
    untied: bool = False,
    use_cache: bool = True,
    progress: Progress | None = None,
    require: Requirement | None = None,
) -> GraphTemplate:
    """Return the graph of a model for a task, without weights.

    Args:
        config: The checkpoint's ``config.json``.
        task: The task's row.
        dtype: The parameters' dtype in the graph.
        opset: The ONNX opset.
        labels_count: The width of the head, for tasks that have labels.
        choices: What the user chooses of the interface of a decoder.
        sentence: What follows the states of the tokens; read for a task that pools them.
        untied: Whether parameters that the model ties are parameters of their own.
        use_cache: Whether the user's graph cache is read and written.
        progress: Told the stages: importing torch, tracing, folding.
        require: Called with the model's parameters before it is traced; what it raises is raised.

    Raises:
        MissingRuntimeError: The graph is not cached, and a library that traces it is not
            installed, or in a version that is not supported. The message names what differs in
            the nearest cached graph, and the setting that no shipped template is for.
        UnsupportedError: The model cannot be built or traced.
        UsageError: The task pools, and nothing says how.
    """
    if task.pooled and sentence is None:
        msg = f"{task.name} needs to know how tokens are pooled"
        raise UsageError(
            msg,
            hint="Pass a checkpoint of sentence-transformers, with its modules.json.",
        )
    sentence = sentence if task.pooled else None
    settings = settings_of(config)
    if labels_count is not None:
        settings["num_labels"] = labels_count
    choices = choices if task.causal else _DEFAULTS
    chosen = asdict(choices) | ({"sentence": asdict(sentence)} if sentence else {})
    chosen |= {"untied": True} if untied else {}
    request = Request(settings, task=task.name, dtype=dtype, opset=opset, choices=chosen)
    tell = progress or Silent()
    made, why = _from_template(
        settings, task, dtype, opset, choices, sentence=sentence, untied=untied
    )
    if made is not None:
        tell.start("graph from a template")
        return made
    missing = [name for name in _TRACING_PACKAGES if importlib.util.find_spec(name) is None]
    if use_cache and (found := graph_cache.load(request, traceable=not missing)) is not None:
        tell.start("graph from the cache")
        return found
    if missing:
        raise _missing(missing, graph_cache.missed(request) if use_cache else None, why)
    template = _trace_and_fold(
        settings, task, dtype, opset, choices,
        sentence=sentence, untied=untied, tell=tell, require=require,
    )  # fmt: skip
    if use_cache:
        graph_cache.store(request, template)
    return template


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a ``config.json`` that a graph can depend on."""
    return {key: value for key, value in config.items() if key not in _NOT_IN_GRAPH}


def _trace_and_fold(
    settings: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    sentence: SentenceHead | None,
    untied: bool,
    tell: Progress,
    require: Requirement | None,
) -> GraphTemplate:
    require_supported(*_TRACING_DISTRIBUTIONS)
    tell.start("importing torch")
    with fewer_collections():
        from lora_export.graph.optimize.onnxscript_private import domains_unparsed
        from lora_export.graph.template_build import build_template

        with domains_unparsed():
            return build_template(
                settings, task, dtype, opset, choices,
                sentence=sentence, untied=untied, tell=tell, require=require,
            )  # fmt: skip


def _from_template(
    settings: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    sentence: SentenceHead | None,
    untied: bool,
) -> tuple[GraphTemplate | None, str]:
    """Return the graph that a shipped template makes; or None, and what none is for."""
    try:
        made = from_template(
            settings, task, dtype, opset, choices, sentence=sentence, untied=untied
        )
    except NoTemplateError as error:
        return None, str(error)
    return made, ""


def _missing(packages: list[str], cache: str | None, template: str) -> MissingRuntimeError:
    msg = f"tracing the graph needs packages that are not installed: {', '.join(packages)}"
    hint = (
        f"Install them {install_command('export')}; or export where they are, and copy the "
        "directory, or the graph cache, here."
    )
    items = [f"graph cache: {cache}"] if cache else []
    items.append(f"graph templates: none that ships with lora-export is for {template}")
    return MissingRuntimeError(msg, items=items, hint=hint)
