"""The plan of a base: what each parameter of the graph is read from, and what is missing."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from lora_export.adapters.resolve import ModelNames
from lora_export.core.computed_parameters import COMPUTED
from lora_export.core.dtypes import by_name
from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.listing import first_few
from lora_export.core.tensors import MemoryTensor, nbytes, same_values
from lora_export.exports.config_fit import misfit_of, names_in, refuse_misfits
from lora_export.graph.spec import tasks
from lora_export.weights.converted import as_loaded
from lora_export.weights.sentence import with_sentence_head

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.resolve import Resolved
    from lora_export.core.name_conversions import Conversion
    from lora_export.core.parameters import Parameter
    from lora_export.core.targets import Target
    from lora_export.core.tensors import Tensor
    from lora_export.graph.spec.tasks import Task
    from lora_export.weights.checkpoint import Checkpoint
    from lora_export.weights.sentence_head import Pooling

__all__ = [
    "HEAD_PARAMETERS",
    "BasePlan",
    "choose_dtype",
    "count_labels",
    "for_task",
    "head_parameters",
    "head_width",
    "main_dtype",
    "match_base",
    "require_complete",
]

_SHOWN: Final = 5


@dataclass(frozen=True)
class BasePlan:
    """The source of each parameter of the graph.

    Attributes:
        sources: The checkpoint's tensor for each parameter's name.
        missing: Parameters that the checkpoint lacks.
        unused: Tensors of the checkpoint that the task does not read.
        kept: Large initializers of a graph that the user brought, which are not parameters.
    """

    sources: Mapping[str, Tensor] = field(repr=False)
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    kept: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


def choose_dtype(checkpoint: Checkpoint, wanted: str | None, target: Target) -> str:
    """Return the dtype of the export's parameters.

    The checkpoint's own (that of most of its bytes) unless another is wanted; bfloat16 becomes
    float16 for a target without bfloat16, and the writer then refuses what float16 cannot hold.

    Raises:
        UnsupportedError: The target does not compute in the wanted dtype.
    """
    own = main_dtype(checkpoint)
    if wanted is None:
        if own in target.dtypes:
            return own
        return "float16" if own == "bfloat16" else "float32"
    name = by_name(wanted).name
    if name not in target.dtypes:
        msg = f"the target {target.name!r} does not support {name}"
        raise UnsupportedError(msg, hint=f"It supports: {', '.join(target.dtypes)}.")
    return name


def main_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype of most of the checkpoint's floating bytes; float32 where it has none."""
    bytes_of: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        if tensor.dtype.floating:
            bytes_of[tensor.dtype.name] += nbytes(tensor)
    return bytes_of.most_common(1)[0][0] if bytes_of else "float32"


def count_labels(
    task: Task,
    config: Mapping[str, object],
    adapters: Iterable[Adapter],
    tensors: Mapping[str, Tensor] | None = None,
) -> int | None:
    """Return the width of the head: the base's own, else the first adapter's, else the config's."""
    if not task.label_parameters:
        return None
    for name in task.label_parameters:
        if tensors is not None and name in tensors and tensors[name].shape:
            return tensors[name].shape[0]
    for adapter in adapters:
        if (width := head_width(task, adapter)) is not None:
            return width
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        return len(names)
    count = config.get("num_labels")
    return count if isinstance(count, int) else 2


def for_task(checkpoint: Checkpoint, task: Task, pooling: Pooling | None = None) -> Checkpoint:
    """Return the checkpoint with what a task needs besides the model.

    That is what follows the token states, for sentence embeddings; for a decoder that classifies,
    a padding token.

    Args:
        checkpoint: The base.
        task: The task.
        pooling: Where what follows the token states is described; by default beside the base.

    Raises:
        CheckpointError: What follows the states is missing or damaged.
        UnsupportedError: It has a part that is not known.
    """
    if task.pooled:
        return with_sentence_head(checkpoint, pooling)
    return _with_padding(checkpoint, task)


def _with_padding(checkpoint: Checkpoint, task: Task) -> Checkpoint:
    """Return the checkpoint with a padding token, where the task cannot do without.

    A decoder that classifies finds each sentence's last token by the padding after it. Where the
    config names none, users train with ``pad_token_id = eos_token_id``, and so do we.
    """
    config = checkpoint.config
    end = config.get("eos_token_id")
    if task.name != "text-classification" or config.get("pad_token_id") is not None or end is None:
        return checkpoint
    first = end[0] if isinstance(end, list) else end
    return replace(checkpoint, config={**config, "pad_token_id": first})


def head_width(task: Task, adapter: Adapter) -> int | None:
    """Return the number of labels of the head that `adapter` brings, if it brings one."""
    for saved in adapter.saved:
        # heads sit at the top of the model: "classifier.weight", not "pre_classifier.weight"
        if saved.parameter in task.label_parameters and saved.tensor.shape:
            return saved.tensor.shape[0]
    return None


def head_parameters(task: Task) -> frozenset[str]:
    """Return the parameters whose first axis is the number of labels: weights and their biases."""
    weights = task.label_parameters
    return frozenset((*weights, *(name.removesuffix("weight") + "bias" for name in weights)))


HEAD_PARAMETERS: Final = frozenset().union(*map(head_parameters, tasks.TASKS.values()))
"""Those of every task, for where the task is not known."""


def match_base(
    parameters: Sequence[Parameter],
    prefix: str,
    tensors: Mapping[str, Tensor],
    *,
    conversions: Sequence[Conversion] = (),
    resizable: frozenset[str] = frozenset(),
) -> BasePlan:
    """Find the checkpoint's tensor for every parameter.

    A head of another width than the graph's counts as missing: an adapter has to bring it. What
    transformers does not save is computed, as it does, unless the checkpoint has it.

    Args:
        parameters: What the graph reads.
        prefix: ``base_model_prefix`` with its dot, or ``""``.
        tensors: The checkpoint's, by its own names.
        conversions: How transformers renames, stacks and splits them for the model.
        resizable: Parameters whose first axis an adapter may change (the head's labels).

    Raises:
        CheckpointError: Tensors of other shapes than the model's; up to five are named.
        UnsupportedError: Tensors that are quantized, or converted in a way that is not known.
    """
    names = ModelNames(parameters, prefix)
    tensors = as_loaded(tensors, conversions, lambda name: names.find(name) is not None)
    sources: dict[str, Tensor] = {}
    missing: list[str] = []
    misfits: list[str] = []
    used: set[str] = set()
    for parameter in parameters:
        present = names_in(tensors, parameter, names)
        if not present:
            if parameter.computed is None:
                missing.append(parameter.name)
            else:
                sources[parameter.name] = _computed_tensor(parameter)
            continue
        found, *others = present
        tensor = tensors[found]
        used.update(present)
        _refuse_unlike(parameter, tensor, [tensors[name] for name in others])
        if tensor.shape == parameter.shape:
            sources[parameter.name] = tensor
        elif parameter.name in resizable:
            missing.append(parameter.name)
        else:
            misfits.append(misfit_of(parameter, tensor, found))
    refuse_misfits(misfits)
    unused = tuple(sorted(set(tensors) - used))
    return BasePlan(sources, tuple(missing), unused)


def _computed_tensor(parameter: Parameter) -> Tensor:
    """Return the values of a parameter that transformers leaves out of a checkpoint."""
    assert parameter.computed is not None  # noqa: S101  (the caller has looked)
    values = COMPUTED[parameter.computed](parameter.shape)
    return MemoryTensor(parameter.name, by_name("float32"), values)


def _refuse_unlike(parameter: Parameter, tensor: Tensor, others: Sequence[Tensor]) -> None:
    """Raise where the checkpoint's values are codes, or tied names have values of their own."""
    if parameter.stored_dtype.floating and not tensor.dtype.floating:
        msg = (
            f"tensor {tensor.name!r} of the base is stored as {tensor.dtype.name}: it is quantized"
        )
        raise UnsupportedError(msg, hint="Give the unquantized checkpoint.")
    for other in others:
        if not same_values(tensor, other):
            msg = (
                f"the base's config ties {tensor.name!r} and {other.name!r}, "
                "but the checkpoint gives them different values"
            )
            raise CheckpointError(msg, hint="Set tie_word_embeddings to false in its config.json.")


def require_complete(
    missing: Sequence[str], resolved: Sequence[Resolved], base: str, unused: Sequence[str] = ()
) -> None:
    """Require that each adapter brings every parameter that the base lacks.

    Args:
        missing: What the base lacks.
        resolved: The adapters.
        base: What the user calls the base.
        unused: Tensors of the base that the graph does not read, where they are known.

    Raises:
        CheckpointError: Parameters that neither has; up to five are named.
    """
    for each in resolved:
        brought = {update.parameter.name for update in each.updates if update.saved is not None}
        if lacking := [name for name in missing if name not in brought]:
            who = f"neither {base!r} nor adapter {each.adapter.source!r} has"
            _refuse_missing(lacking, who, unused)
    if missing and not resolved:
        _refuse_missing(missing, f"{base!r} lacks", unused)


def _refuse_missing(names: Sequence[str], subject: str, unused: Sequence[str]) -> None:
    msg = f"{subject} {len(names)} parameter(s) of the model:"
    hint = (
        "A graph with untrained parameters is of no use. Choose the --task that the weights "
        "were trained for, or an adapter that carries them (modules_to_save)."
    )
    layer = re.match(r"(.*\.)\d+\.", names[0])
    if layer and (others := [name for name in unused if name.startswith(layer[1])]):
        hint = (
            f"The base holds other names there, such as {others[0]!r}. If transformers loads it, "
            "save it from there as save_pretrained(FOLDER, save_original_format=False); that "
            "folder can be exported."
        )
    raise CheckpointError(msg, items=first_few(names, _SHOWN), hint=hint)
