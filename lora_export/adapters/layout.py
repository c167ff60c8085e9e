"""The parameters of a checkpoint without its graph, from the names and shapes of its tensors.

`resolve` needs to know how a weight is laid out. A traced model knows; here it follows from the
checkpoint, its model type and the adapter (which names are one weight: see `declared_ties`):

    1. An embedding's update makes its module an ``Embedding``.
    2. A weight of four axes belongs to a convolution.
    3. A weight shaped ``(out, in)`` like the update is a ``Linear``'s; one shaped ``(in, out)`` is
       a ``Conv1D``'s, if the model type has Conv1D at all or the adapter says ``fan_in_fan_out``
       (else it is a misfit, and `resolve` says so).
    4. A square weight is both. The model types of transformers that use Conv1D are a table, with
       the names of those modules; every other module is a ``Linear``. ``fan_in_fan_out`` decides
       nothing here: PEFT corrects it while it runs, and saves what the user wrote. Where another
       module of an unlisted model type is a Conv1D by its shape, a square one is refused.
    5. Stacked experts lie as their shape says; square ones ``[experts, out, in]``, but for
       the model types of `INPUT_FIRST_EXPERTS`.
    6. A saved parameter of a top-level module that the base lacks entirely is a head that the
       adapter brings (`may_be_brought`). An output embedding among them has the rows of the base's
       vocabulary here, so that `vocabulary_of` sees where training changed their number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import INPUT_FIRST_EXPERTS
from lora_export.adapters.fit import UNKNOWN_MODULE, header_parameters, may_be_brought, top_modules
from lora_export.adapters.resolve import ModelNames
from lora_export.adapters.vocabulary import EMBEDDINGS
from lora_export.core.errors import UnsupportedError
from lora_export.core.parameters import Parameter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.adapters.canonical import Adapter, Computed, LowRank
    from lora_export.core.tensors import Tensor

__all__ = ["CONV1D_MODULES", "checkpoint_parameters"]

CONV1D_MODULES: Final[dict[str, frozenset[str]]] = {
    "decision_transformer": frozenset({"c_attn", "c_fc", "c_proj", "q_attn"}),
    "gpt2": frozenset({"c_attn", "c_fc", "c_proj", "q_attn"}),
    "imagegpt": frozenset({"c_attn", "c_fc", "c_proj", "q_attn"}),
    "openai-gpt": frozenset({"c_attn", "c_fc", "c_proj"}),
}
"""Modules whose weight is ``[in, out]``, by ``model_type``; GPT-J, GPT-NeoX and CTRL use Linear."""

_OUTPUT_EMBEDDINGS: Final = EMBEDDINGS & {
    "embed_out", "generator_lm_head", "lm_head", "lm_head.out_proj", "lm_loss", "output_projection",
    "pred_layer.proj", "proj_out", "vocab_projector",
}  # fmt: skip
"""Modules that no classifier has: ``head`` or ``output`` may give labels."""

_CONVOLUTIONS: Final = {3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}
_MATRIX: Final = 2


def checkpoint_parameters(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, object],
    adapter: Adapter,
    *,
    prefix: str,
    head_dtype: str,
) -> tuple[Parameter, ...]:
    """Return a parameter for each tensor of a checkpoint, and for each of a head that it lacks.

    Args:
        tensors: The checkpoint's tensors by name.
        config: Its ``config.json``.
        adapter: The adapter that will be resolved against them.
        prefix: ``base_model_prefix`` with its dot, or ``""``.
        head_dtype: The dtype of what only the adapter has.

    Raises:
        UnsupportedError: A square weight whose layout nothing decides, or one stored as codes.
    """
    plain = header_parameters(tensors)
    names = ModelNames(plain, prefix)
    model_type = str(config.get("model_type"))
    modules = _module_types(adapter, names, model_type)
    _refuse_codes(tensors, modules, adapter)
    known = tuple(
        Parameter(
            each.name,
            each.shape,
            each.dtype,
            modules.get(each.name, UNKNOWN_MODULE),
        )
        for each in plain
    )
    brought = _brought(adapter, ModelNames(known, prefix), known, prefix, head_dtype)
    return (*known, *(_of_base_vocabulary(each, known) for each in brought))


def _module_types(adapter: Adapter, names: ModelNames, model_type: str) -> dict[str, str]:
    """Return the module type of every parameter that a low-rank update means."""
    found: dict[str, str] = {}
    square: list[str] = []
    fan_in_fan_out = bool(adapter.config.get("fan_in_fan_out"))
    table = CONV1D_MODULES.get(model_type)
    for each in adapter.computed:
        parameter = names.find(each.parameter)
        if parameter is not None:
            found[parameter.name] = _type_of_computed(each, parameter, table)
    for update in adapter.low_rank:
        parameter = names.find(update.parameter)
        if parameter is None:
            continue
        shape = parameter.shape
        if update.name is not None:
            found[parameter.name] = INPUT_FIRST_EXPERTS.get(model_type, UNKNOWN_MODULE)
        elif update.embedding:
            found[parameter.name] = "Embedding"
        elif len(shape) != _MATRIX:
            found[parameter.name] = _CONVOLUTIONS.get(len(shape), UNKNOWN_MODULE)
        elif shape[0] == shape[1]:
            leaf = update.module.rpartition(".")[2]
            found[parameter.name] = "Conv1D" if leaf in (table or ()) else "Linear"
            square.append(parameter.name)
        else:
            input_first = shape == _delta(update)[::-1] and (table is not None or fan_in_fan_out)
            found[parameter.name] = "Conv1D" if input_first else "Linear"
    if square and table is None and "Conv1D" in found.values():
        msg = (
            f"the weight {square[0]!r} is square and modules of this model ({model_type}) hold "
            "theirs as [in, out]: the layout of this one is unknown"
        )
        raise UnsupportedError(msg, hint="Merge it with PEFT; please report the model type.")
    return found


def _type_of_computed(item: Computed, parameter: Parameter, table: frozenset[str] | None) -> str:
    """Return the module type of a weight that another method computes, by the same rules."""
    shape = parameter.shape
    if item.embedding:
        return "Embedding"
    if len(shape) != _MATRIX:
        return _CONVOLUTIONS.get(len(shape), UNKNOWN_MODULE)
    module = item.parameter.removesuffix(".weight").rpartition(".")[2]
    return "Conv1D" if module in (table or ()) else "Linear"


def _delta(update: LowRank) -> tuple[int, ...]:
    return (update.b.shape[0], update.a.shape[1])  # (out, in)


def _refuse_codes(
    tensors: Mapping[str, Tensor], modules: Mapping[str, str], adapter: Adapter
) -> None:
    """Raise for an update of a weight that is stored as integers."""
    for name in modules:
        dtype = tensors[name].dtype
        if not dtype.floating:
            msg = f"adapter {adapter.source!r} updates {name!r}, which is stored as {dtype.name}"
            raise UnsupportedError(msg, hint="It is quantized: give the unquantized checkpoint.")


def _brought(
    adapter: Adapter,
    names: ModelNames,
    known: Sequence[Parameter],
    prefix: str,
    dtype: str,
) -> list[Parameter]:
    """Return the parameters of the heads that only the adapter has, under its names."""
    tops = top_modules(known, prefix)
    return [
        Parameter(saved.parameter, saved.tensor.shape, dtype, UNKNOWN_MODULE)
        for saved in adapter.saved
        if names.find(saved.parameter) is None
        and may_be_brought(saved, adapter.format, tops, prefix)
    ]


def _of_base_vocabulary(brought: Parameter, known: Sequence[Parameter]) -> Parameter:
    """Return a brought output embedding with as many rows as the base's token embedding has."""
    module, _, leaf = brought.name.rpartition(".")
    if leaf != "weight" or module not in _OUTPUT_EMBEDDINGS:
        return brought
    rows = {
        each.shape[0]
        for each in known
        if each.shape[1:] == brought.shape[1:]
        and each.name.removesuffix(".weight").rpartition(".")[2] in EMBEDDINGS
    }
    return replace(brought, shape=(*rows, *brought.shape[1:])) if len(rows) == 1 else brought
