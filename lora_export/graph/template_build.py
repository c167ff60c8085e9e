"""The template of a graph that was not in the cache: traced, folded, serialized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.core.errors import FixedLengthError, UnsupportedError
from lora_export.core.progress import Progress, Silent
from lora_export.graph.optimize.complete import complete_graph, joined_parameters
from lora_export.graph.optimize.fold import simplify
from lora_export.graph.optimize.layer_parts import NotRepeatingError
from lora_export.graph.spec.template import GraphTemplate
from lora_export.graph.trace.trace import Traced, trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.signature import Choices
    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import Requirement
    from lora_export.graph.trace.encoder_decoder import Component
    from lora_export.weights.sentence_head import SentenceHead

__all__ = ["build_template", "traced_and_simplified"]

_SILENT = Silent()


def build_template(
    settings: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    sentence: SentenceHead | None = None,
    untied: bool = False,
    tell: Progress = _SILENT,
    require: Requirement | None = None,
) -> GraphTemplate:
    """Trace and fold the model of `settings`; see `lora_export.graph.graph_export.export_graph`."""
    if task.encoder_decoder:
        return _build_pair(
            settings, task, dtype, opset, choices, untied=untied, tell=tell, require=require
        )
    traced, onnx_bytes, parameters = _completed(
        settings, task, dtype, opset, choices,
        sentence=sentence, untied=untied, tell=tell, require=require,
    )  # fmt: skip
    return GraphTemplate(
        onnx_bytes=onnx_bytes,
        parameters=parameters,
        prefix=traced.prefix,
        model_class=traced.model_class,
        opset=opset,
        conversions=traced.conversions,
    )


def _build_pair(
    settings: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    untied: bool,
    tell: Progress,
    require: Requirement | None,
) -> GraphTemplate:
    """Trace and fold encoder and decoder; a parameter that both read is one, of one layout."""
    own: dict[Component, tuple[Parameter, ...]] = {}
    graphs: dict[Component, bytes] = {}
    components: tuple[Component, ...] = ("encoder", "decoder")
    for each in components:
        traced, graphs[each], own[each] = _completed(
            settings, task, dtype, opset, choices,
            component=each, untied=untied, tell=tell, require=require,
        )  # fmt: skip
    return GraphTemplate(
        onnx_bytes=graphs["decoder"],
        parameters=joined_parameters(own["encoder"], own["decoder"]),
        prefix=traced.prefix,
        model_class=traced.model_class,
        opset=opset,
        encoder_bytes=graphs["encoder"],
        conversions=traced.conversions,
    )


def traced_and_simplified(
    settings: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    sentence: SentenceHead | None = None,
    component: Component | None = None,
    untied: bool = False,
    every_layer: bool = False,
    tell: Progress = _SILENT,
    require: Requirement | None = None,
) -> Traced:
    """Return the graph of the layers that are traced, as `complete_graph` takes it."""
    tell.start(f"tracing the {component or 'graph'}")
    traced = trace(
        settings, task, dtype, opset,
        choices=choices, sentence=sentence, component=component, every_layer=every_layer,
        untied=untied, require=require,
    )  # fmt: skip
    tell.start(f"folding the {component or 'graph'}")
    simplify(traced.model, traced.signature)
    return traced


def _completed(
    settings: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    sentence: SentenceHead | None = None,
    component: Component | None = None,
    untied: bool = False,
    tell: Progress,
    require: Requirement | None,
) -> tuple[Traced, bytes, tuple[Parameter, ...]]:
    """Trace a few layers of each kind and stamp out the others, or else trace them all."""

    def completed(*, every_layer: bool) -> tuple[Traced, bytes, tuple[Parameter, ...]]:
        traced = traced_and_simplified(
            settings, task, dtype, opset, choices,
            sentence=sentence, component=component, untied=untied, every_layer=every_layer,
            tell=tell, require=require,
        )  # fmt: skip
        return traced, *complete_graph(traced.model, traced.parameters, traced.repeats)

    try:
        return completed(every_layer=False)
    except FixedLengthError:  # more layers do not help
        raise
    except (UnsupportedError, NotRepeatingError):
        pass  # and let go of what was traced
    return completed(every_layer=True)
