"""The template of a graph that was not in the cache: traced, folded, serialized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lora_export.core.errors import FixedLengthError, UnsupportedError
from lora_export.core.progress import Progress, Silent
from lora_export.graph.optimize.fold import fold
from lora_export.graph.optimize.layer_parts import NotRepeatingError
from lora_export.graph.optimize.replicate_layers import replicate_layers
from lora_export.graph.spec.template import GraphTemplate
from lora_export.graph.trace.trace import Traced, trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.signature import Choices
    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.trace.encoder_decoder import Component
    from lora_export.weights.sentence_head import SentenceHead

__all__ = ["build_template"]

_PLACEHOLDER = "weights/base.safetensors"
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
) -> GraphTemplate:
    """Trace and fold the model of `settings`; see `lora_export.graph.graph_export.export_graph`."""
    if task.encoder_decoder:
        return _build_pair(settings, task, dtype, opset, choices, untied=untied, tell=tell)
    traced, parameters = _traced_and_folded(
        settings, task, dtype, opset, choices, sentence=sentence, untied=untied, tell=tell
    )
    return GraphTemplate(
        onnx_bytes=_serialized(traced.model, parameters),
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
) -> GraphTemplate:
    """Trace and fold encoder and decoder; a parameter that both read is one, of one layout."""
    traced: dict[Component, Traced] = {}
    parameters: dict[str, Parameter] = {}
    graphs: dict[Component, bytes] = {}
    components: tuple[Component, ...] = ("encoder", "decoder")
    for each in components:
        traced[each], own = _traced_and_folded(
            settings, task, dtype, opset, choices, component=each, untied=untied, tell=tell
        )
        for parameter in own:
            if parameters.setdefault(parameter.name, parameter) != parameter:
                msg = f"encoder and decoder read {parameter.name!r} in different layouts"
                raise UnsupportedError(msg, hint="docs/models.md lists the families.")
        graphs[each] = _serialized(traced[each].model, own)
    decoder = traced["decoder"]
    return GraphTemplate(
        onnx_bytes=graphs["decoder"],
        parameters=tuple(parameters[name] for name in sorted(parameters)),
        prefix=decoder.prefix,
        model_class=decoder.model_class,
        opset=opset,
        encoder_bytes=graphs["encoder"],
        conversions=decoder.conversions,
    )


def _serialized(model: ir.Model, parameters: Sequence[Parameter]) -> bytes:
    """Return the file of a folded graph, its parameters external; mutates `model`."""
    _externalise(model, parameters)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # shapes of values in between: a head may change its width
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized


def _traced_and_folded(
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
) -> tuple[Traced, tuple[Parameter, ...]]:
    """Trace a few layers of each kind and stamp out the others, or else trace them all."""

    def traced_and_folded(*, every_layer: bool) -> tuple[Traced, tuple[Parameter, ...]]:
        tell.start(f"tracing the {component or 'graph'}")
        traced = trace(
            settings, task, dtype, opset,
            choices=choices, sentence=sentence, component=component, every_layer=every_layer,
            untied=untied,
        )  # fmt: skip
        tell.start(f"folding the {component or 'graph'}")
        return traced, fold(traced.model, traced.parameters, traced.signature)

    try:
        traced, parameters = traced_and_folded(every_layer=False)
        return traced, replicate_layers(traced.model, parameters, traced.repeats)
    except FixedLengthError:  # more layers do not help
        raise
    except (UnsupportedError, NotRepeatingError):
        pass  # and let go of what was traced
    return traced_and_folded(every_layer=True)


def _externalise(model: ir.Model, parameters: Sequence[Parameter]) -> None:
    """Give each parameter a place in a file that is yet to be written; mutates `model`."""
    for parameter in parameters:
        value = model.graph.initializers[parameter.name]
        value.const_value = ir.ExternalTensor(
            _PLACEHOLDER,
            0,
            0,
            ir.DataType(parameter.stored_dtype.onnx),
            shape=ir.Shape(parameter.stored_shape),
            name=parameter.name,
        )
