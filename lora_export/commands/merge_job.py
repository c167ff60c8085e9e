"""A merge into a checkpoint with everything resolved, before anything is written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.adapters.fit import header_parameters, prefix_of
from lora_export.adapters.layout import checkpoint_parameters
from lora_export.adapters.naming import to_checkpoint_names
from lora_export.adapters.resolve import ModelNames, Resolved, resolve
from lora_export.commands.adapter_inputs import read_specs
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.exports.plan import HEAD_PARAMETERS, main_dtype
from lora_export.graph.spec import tasks
from lora_export.weights.base_match import require_known_base
from lora_export.weights.residual import require_residual_base
from lora_export.weights.untied_checkpoint import untie_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.commands.adapter_inputs import LoadedAdapter
    from lora_export.commands.recipe import CombineSpec
    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.parameters import Parameter
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["Job", "prepare_job"]

_LABELLED: Final = frozenset(
    name for task in tasks.TASKS.values() for name in task.label_parameters
)


@dataclass(frozen=True)
class Job:
    """A merge that can be written.

    Attributes:
        checkpoint: The base; untied, where the adapter changes one side of a tie.
        resolved: The adapter.
        parameters: What is written: the base's tensors, and what only the adapter has.
        prefix: What the base's names get before them, where the adapter brings a head.
        brought: The parameters that only the adapter has.
        given: The adapter as it was given; what it was combined of.
        copies: Names of tied weights that the base does not store, each with the one that it does:
            the merged checkpoint has a tensor for both.
    """

    checkpoint: Checkpoint
    resolved: Resolved
    parameters: tuple[Parameter, ...]
    prefix: str
    brought: tuple[str, ...]
    given: LoadedAdapter
    copies: Mapping[str, str] = field(default_factory=dict)

    @property
    def head_width(self) -> int | None:
        """The number of classes of the head that the adapter brings, if it brings one."""
        for update in self.resolved.updates:
            if update.saved is not None and update.parameter.name in _LABELLED:
                return update.saved.tensor.shape[0]
        return None


def prepare_job(
    checkpoint: Checkpoint,
    specs: Sequence[AdapterSpec],
    combine: CombineSpec | None,
) -> Job:
    """Read the adapter and resolve it against the checkpoint's own names and shapes.

    Args:
        checkpoint: The base.
        specs: The adapter, or those that `combine` makes one of.
        combine: How several adapters become one.

    Raises:
        LoraExportError: See the class of the error.
    """
    given = _only(specs, combine, checkpoint)
    prefix = prefix_of(
        str(checkpoint.config["model_type"]), header_parameters(checkpoint.tensors), given.adapter
    )
    read, given = given, _as_stored(checkpoint, given, prefix)
    untied = untie_for(checkpoint, given.adapter, prefix=prefix, drop=given.spec.drop)
    checkpoint, given = untied.checkpoint, replace(given, adapter=untied.adapter)
    parameters = _parameters(checkpoint, given, prefix)
    resolved = _resolved(given, parameters, prefix)
    tensors = checkpoint.tensors
    own = checkpoint.of_adapters
    for each in given.originals:
        require_known_base(each, own.stored, prefix, own.source)
    require_residual_base(resolved, tensors, checkpoint.source)
    if resolved.vocabulary is not None and given.adapter.rows:
        _refuse_resized_rows(given.adapter.source, str(checkpoint.config["model_type"]))
    if resolved.vocabulary is not None:
        parameters = resolved.vocabulary.resized(parameters)
    changed = {update.parameter.name for update in resolved.updates}
    written = tuple(p for p in parameters if p.name in tensors or p.name in changed)
    brought = tuple(p.name for p in written if p.name not in tensors)
    bare = bool(brought) and not any(name.startswith(prefix) for name in tensors)
    bare |= untied.bare
    return Job(checkpoint, resolved, written, prefix if bare else "", brought, read, untied.copies)


def _refuse_resized_rows(source: str, model_type: str) -> None:
    """Raise where PEFT trains other rows of a resized model than of one that was not resized."""
    if model_type == "marian":
        msg = (
            f"adapter {source!r} trains token rows of a resized {model_type} model: there "
            "PEFT leaves the output embeddings out"
        )
        raise UnsupportedError(msg, hint="Train the embeddings whole: modules_to_save.")


def _only(
    specs: Sequence[AdapterSpec], combine: CombineSpec | None, checkpoint: Checkpoint
) -> LoadedAdapter:
    if not specs:
        raise UsageError("no adapter is given", hint="Give one: --adapter [NAME=]PATH.")
    if len(specs) > 1 and combine is None:
        msg = f"{len(specs)} adapters need a method to be combined by"
        hint = "Merge one at a time, or choose a method, such as: --combine linear"
        raise UsageError(msg, hint=hint)
    (given,) = read_specs(specs, Path(), combine, base_config=checkpoint.config)
    return given


def _as_stored(checkpoint: Checkpoint, given: LoadedAdapter, prefix: str) -> LoadedAdapter:
    names = ModelNames(header_parameters(checkpoint.tensors), prefix)
    named = to_checkpoint_names(
        given.adapter, names, config=checkpoint.config, drop=given.spec.drop
    )
    return replace(given, adapter=named)


def _parameters(checkpoint: Checkpoint, given: LoadedAdapter, prefix: str) -> tuple[Parameter, ...]:
    return checkpoint_parameters(
        checkpoint.tensors,
        checkpoint.config,
        given.adapter,
        prefix=prefix,
        head_dtype=main_dtype(checkpoint),
    )


def _resolved(given: LoadedAdapter, parameters: Sequence[Parameter], prefix: str) -> Resolved:
    return resolve(
        given.adapter, parameters, prefix=prefix, drop=given.spec.drop, resizable=HEAD_PARAMETERS
    )
