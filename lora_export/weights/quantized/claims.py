"""The settings of a config, compared with the form of the weights that are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import CheckpointError
from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_export.weights.quantized.weight import Form, QuantizedWeight

__all__ = ["require_settings"]

_FOUR_BITS: Final = 4
_EIGHT_BITS: Final = 8
_IN_GROUPS: Final = frozenset({"gptq", "awq"})


def require_settings(
    settings: Mapping[str, Any], weights: Sequence[QuantizedWeight], folder: Path
) -> None:
    """Require that a config does not contradict what is stored; it may say nothing.

    Raises:
        CheckpointError: It does; the setting and the first weight are named.
    """
    for weight in weights:
        for name, value, found in _contradictions(settings, weight):
            msg = (
                f"the config of the base {str(folder)!r} says {name}: {shown(value)}, but "
                f"{weight.name!r} is stored as {found}"
            )
            raise CheckpointError(msg, hint="Config and weights are not of one checkpoint.")


def _contradictions(
    settings: Mapping[str, Any], weight: QuantizedWeight
) -> Iterator[tuple[str, object, str]]:
    """Yield the name and value of each setting that is not true, and what is stored."""
    form = weight.form
    method = settings.get("quant_method")
    if method is not None and method != form.method:
        yield "quant_method", method, f"{form.method} {form.scheme}"
    for name, bits in (("load_in_4bit", _FOUR_BITS), ("load_in_8bit", _EIGHT_BITS)):
        if settings.get(name) is True and form.bits != bits:
            yield name, True, form.scheme
    kind = settings.get("bnb_4bit_quant_type")
    if settings.get("load_in_4bit") is True and kind is not None and kind != form.scheme:
        yield "bnb_4bit_quant_type", kind, form.scheme
    if settings.get("dynamic"):  # other bits and groups for some modules
        return
    for name in ("bits", "w_bit"):
        said = settings.get(name)
        if form.method in _IN_GROUPS and said is not None and said != form.bits:
            yield name, said, f"{form.bits} bits"
    for name in ("group_size", "q_group_size"):
        size = settings.get(name)
        if form.method in _IN_GROUPS and size is not None and not _has_groups_of(weight, size):
            yield name, size, f"groups of {form.group_size}"
    yield from _compressed(settings, form)


def _has_groups_of(weight: QuantizedWeight, size: int) -> bool:
    """Return whether a weight has groups of the size that a config says; −1 is all inputs."""
    inputs = weight.shape[-1]
    return weight.form.group_size == (inputs if size <= 0 else min(size, inputs))


def _compressed(settings: Mapping[str, Any], form: Form) -> Iterator[tuple[str, object, str]]:
    """Yield the bits that no group of compressed-tensors' config names."""
    groups = settings.get("config_groups")
    if form.method != "compressed-tensors" or not isinstance(groups, dict):
        return
    weights = [each.get("weights") for each in groups.values() if isinstance(each, dict)]
    said = [each.get("num_bits") for each in weights if isinstance(each, dict)]
    if said and form.bits not in said:
        yield "num_bits", said[0], f"{form.bits} bits"
