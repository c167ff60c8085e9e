"""A model traced from its config alone: no weights are read, and none are allocated.

Parameters are fake CPU tensors: they have shapes and dtypes, no storage. Buffers (rotary
frequencies, lifted constants) are real. Every parameter keeps its name as the initializer's name.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnx_ir as ir
import torch

from lora_export.core.errors import StorageError, UnsupportedError
from lora_export.graph.nodes.equal_sizes import read_sizes_once
from lora_export.graph.spec.signature import PAST, WRITE_INDICES, Choices, signature_of
from lora_export.graph.trace.alibi import float32_alibi
from lora_export.graph.trace.conversion_rules import conversions_of
from lora_export.graph.trace.decompose import only_needed_decompositions
from lora_export.graph.trace.empty_model import build_model
from lora_export.graph.trace.encoder_decoder import component_of
from lora_export.graph.trace.initializers import detach_parameters, parameters_of
from lora_export.graph.trace.kv_cache import cache_layers, cache_of, tensors_of
from lora_export.graph.trace.lengths import fixed_axis, fixed_length, refuse_fixed_lengths
from lora_export.graph.trace.masks import plain_masks
from lora_export.graph.trace.overflow import AssumeOverflow
from lora_export.graph.trace.promote import promotion_from_known_values
from lora_export.graph.trace.repeated_layers import leave_out_repeats
from lora_export.graph.trace.traced_experts import traceable_experts
from lora_export.graph.trace.traced_pooling import sentence_embedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_export.core.name_conversions import Conversion
    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.repeat import Repeat
    from lora_export.graph.spec.signature import CachedLayer, Signature
    from lora_export.graph.spec.tasks import Task
    from lora_export.graph.spec.template import Requirement
    from lora_export.graph.trace.encoder_decoder import Component
    from lora_export.weights.sentence_head import SentenceHead

__all__ = ["Traced", "trace"]

_EXAMPLE_SIZES: Final[dict[str, int]] = {
    "batch": 2,
    "sequence": 7,
    "past_sequence": 5,
}
"""Sizes of named axes while tracing; one that is not here gets `_EXAMPLE_SIZE`."""
_EXAMPLE_SIZE: Final = 16
_DEFAULTS: Final = Choices()
_MESSAGE_LIMIT: Final = 300
_TALKATIVE: Final = ("torch.onnx", "torch.fx", "onnxscript", "onnx_ir", "transformers")


@dataclass(frozen=True)
class Traced:
    """The result of a trace.

    Attributes:
        signature: The interface of the graph.
        model: The graph, parameters without values; every other initializer has its value.
        parameters: The parameters that the graph reads, in the model's own layout.
        prefix: ``base_model_prefix``: what precedes the backbone's names under a head (``bert.``).
        model_class: The class that was built.
        repeats: Lists of equal layers of which only some were traced.
        conversions: How transformers loads a checkpoint of the model.
    """

    signature: Signature
    model: ir.Model
    parameters: tuple[Parameter, ...]
    prefix: str
    model_class: str
    repeats: tuple[Repeat, ...] = ()
    conversions: tuple[Conversion, ...] = ()


def trace(
    config: Mapping[str, Any],
    task: Task,
    dtype: str,
    opset: int,
    *,
    choices: Choices = _DEFAULTS,
    sentence: SentenceHead | None = None,
    every_layer: bool = False,
    component: Component | None = None,
    untied: bool = False,
    require: Requirement | None = None,
) -> Traced:
    """Build the model of `config` for `task` without weights, and trace it to ONNX.

    Args:
        config: The checkpoint's ``config.json``, with the number of labels already right.
        task: The task's row.
        dtype: The dtype of the parameters, ours (``float16``).
        opset: The ONNX opset.
        choices: What the user chooses of the interface.
        sentence: What follows the states of the tokens, for a task that pools them.
        every_layer: Whether layers that are equal are traced one by one all the same.
        component: Of an encoder-decoder: which of its two graphs.
        untied: Whether parameters that the model ties are parameters of their own.
        require: Called with the parameters of the model before it is traced; what it raises ends
            the trace.

    Raises:
        UnsupportedError: transformers does not know the model, or it cannot be traced.
    """
    model = build_model(config, task, getattr(torch, dtype), sentence, untied=untied)
    if require is not None:
        require(parameters_of(model), _prefix_of(model), conversions_of(model))
    repeats = () if every_layer else leave_out_repeats(model)
    if component is not None:
        signature, wrapper = component_of(model, task, component, dtype=dtype)
    else:
        signature, wrapper = _one_graph(model, task, dtype, opset, choices, sentence=sentence)
    graph = _translated(
        model, wrapper, signature, opset, task=task, dtype=dtype, component=component
    )
    _check_dtypes(graph, dtype, model)
    read_sizes_once(graph, signature)
    parameters = detach_parameters(graph, model, first_names=component is not None)
    name = type(model).__name__
    return Traced(
        signature, graph, parameters, _prefix_of(model), name, repeats, conversions_of(model)
    )


def _prefix_of(model: Any) -> str:
    prefix = getattr(model, "base_model_prefix", "") or ""
    return f"{prefix}." if prefix else ""


def _translated(
    model: Any,
    wrapper: torch.nn.Module,
    signature: Signature,
    opset: int,
    *,
    task: Task,
    dtype: str,
    component: Component | None,
) -> ir.Model:
    """Return the ONNX graph of `wrapper`, its parameters without values.

    Raises:
        UnsupportedError: It cannot be traced, or its code fixes a size.
    """
    dynamic = {
        each.name: dict.fromkeys(each.dynamic, torch.export.Dim.DYNAMIC)
        for each in signature.inputs
    }
    try:
        with (
            _quiet(),
            plain_masks(),
            float32_alibi(),
            traceable_experts(),
            only_needed_decompositions(),
            promotion_from_known_values(),
            AssumeOverflow() if dtype == "float16" else contextlib.nullcontext(),
            torch.no_grad(),
        ):

            def exported(sizes: Mapping[str, int]) -> torch.export.ExportedProgram:
                inputs = {"inputs": _example_inputs(signature, sizes)}
                return torch.export.export(
                    wrapper, (), inputs, strict=False, dynamic_shapes={"inputs": dynamic}
                )

            program = exported({})
            refuse_fixed_lengths(program, signature, model, exported)
            if component is not None:  # the encoder's graph has little of the decoder
                program.graph.eliminate_dead_code()
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                opset_version=opset,
                input_names=signature.input_names,
                output_names=signature.output_names,
                verbose=False,
            )
    except OSError as error:
        msg = f"the exporter cannot write its temporary files: {error}"
        raise StorageError(msg, hint="Free some space, or set TMPDIR.") from error
    except UnsupportedError:
        raise
    except Exception as error:
        name = type(model).__name__
        if (axis := fixed_axis(error, signature)) is not None:
            raise fixed_length(name, f"its code fixes the size of {axis}") from error
        msg = f"{name} cannot be traced for {task.name}: {_first_cause(error)}"
        raise UnsupportedError(
            msg,
            hint="docs/models.md lists the families that are tested; --debug shows why.",
        ) from error
    assert onnx_program is not None  # noqa: S101  (None only where a file is written)
    return onnx_program.model


def _one_graph(
    model: Any,
    task: Task,
    dtype: str,
    opset: int,
    choices: Choices,
    *,
    sentence: SentenceHead | None,
) -> tuple[Signature, torch.nn.Module]:
    """Return the interface of a model that is one graph, and the module that computes it."""
    part = task.part_of(model)
    accepted = inspect.signature(part.forward).parameters
    cached = task.causal and choices.cache
    cache = cache_layers(model, choices.cache_length) if cached else ()
    logits = choices.logits if task.causal else "all"
    signature = signature_of(part.config, task, accepted, dtype=dtype, logits=logits, cache=cache)
    return signature, _Wrapper(
        model, part, signature, cache, sentence, last_logits=logits == "last", opset=opset
    )


class _Wrapper(torch.nn.Module):
    """The part of a model that serves a task, with the graph's inputs and outputs."""

    def __init__(
        self,
        model: Any,
        part: Any,
        signature: Signature,
        cache: Sequence[CachedLayer],
        sentence: SentenceHead | None,
        *,
        last_logits: bool,
        opset: int,
    ) -> None:
        super().__init__()
        self.model = model  # so that parameters have the names that they have in it
        self._part = (part,)  # no submodule of its own
        self._outputs = signature.output_names
        self._cache, self._opset = cache, opset
        self._sentence = sentence
        accepted = inspect.signature(part.forward).parameters
        self._fixed: dict[str, Any] = {"use_cache": bool(cache)} if "use_cache" in accepted else {}
        if last_logits:
            if "logits_to_keep" not in accepted:
                msg = f"{type(part).__name__} cannot return the logits of the last position only"
                raise UnsupportedError(msg, hint="Leave --logits last out.")
            self._fixed["logits_to_keep"] = 1
        one_type = getattr(part.config, "type_vocab_size", None) == 1  # RoBERTa
        self._zero_types = one_type and "token_type_ids" in accepted

    def forward(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        extra: dict[str, Any] = dict(self._fixed)
        if self._zero_types:
            extra["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        cache = cache_of(self._cache, inputs, self._opset) if self._cache else None
        if cache is not None:
            own = {name for name in inputs if name.startswith(PAST)} | {WRITE_INDICES}
            inputs = {name: v for name, v in inputs.items() if name not in own}
            extra["past_key_values"] = cache
        (part,) = self._part
        output = part(**inputs, **extra, return_dict=True)
        if self._sentence is not None:
            states, mask = output.last_hidden_state, inputs["attention_mask"]
            return (sentence_embedding(self.model, self._sentence, states, mask),)
        kept = tensors_of(self._cache, cache) if cache is not None else {}
        return tuple(
            kept[name] if name in kept else getattr(output, name) for name in self._outputs
        )


def _check_dtypes(graph: ir.Model, dtype: str, model: Any) -> None:
    """Refuse a model that computes in bfloat16 whatever its parameters are."""
    if dtype == "bfloat16":
        return
    for node in graph.graph.all_nodes():
        if any(value.dtype == ir.DataType.BFLOAT16 for value in node.outputs):
            msg = f"{type(model).__name__} computes in bfloat16 at {node.name}, also in {dtype}"
            raise UnsupportedError(msg, hint="Few runtimes have these operators in bfloat16.")


def _first_cause(error: BaseException) -> str:
    """Return the first error on one line, without the exporter's advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:_MESSAGE_LIMIT]


def _example_inputs(signature: Signature, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Return an example of each input, in order; `sizes` are those of axes that differ."""
    known = {**_EXAMPLE_SIZES, **sizes}
    known["total_sequence"] = known["past_sequence"] + known["sequence"]
    return {
        each.name: torch.ones(
            [
                known.get(axis, _EXAMPLE_SIZE) if isinstance(axis, str) else axis
                for axis in each.axes
            ],
            dtype=getattr(torch, each.dtype),
        )
        for each in signature.inputs
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's prints and notices; its errors still arrive as exceptions.

    What cannot be traced, torch prints on stderr as far as it came, with a warning of its own.
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
