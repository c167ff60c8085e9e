"""A cache that a run writes in the caller's arrays, where they have room for the new positions.

A graph of the form ``ort`` takes keys and values in buffers that may be longer than what is in
them, and returns them as long. Where an output is the memory of its input, the kernel writes the
new positions there and copies nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.ondevice.judge.decoding import PAST, PRESENT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnxruntime

    from lora_export.ondevice.graph_runner import Array

__all__ = ["outputs_in_place", "run_bound"]

_LENGTH: Final = 2
_RANK: Final = 4
_MASK: Final = "attention_mask"


def outputs_in_place(feeds: Mapping[str, Array]) -> dict[str, str]:
    """Return the outputs that are written in the arrays of inputs: output → input.

    That is all of a cache or nothing: each array is ``[batch, heads, room, width]`` with room for
    the positions of ``attention_mask``, contiguous, and may be written.

    Args:
        feeds: The inputs of a run on the CPU, of a graph of the form ``ort``.
    """
    past = [name for name in feeds if name.startswith(PAST)]
    if not past or _MASK not in feeds:
        return {}
    needed = feeds[_MASK].shape[-1]
    for name in past:
        each = feeds[name]
        fits = each.ndim == _RANK and each.shape[_LENGTH] >= needed
        if not (fits and each.flags.c_contiguous and each.flags.writeable):
            return {}
    return {PRESENT + name.removeprefix(PAST): name for name in past}


def run_bound(
    session: onnxruntime.InferenceSession,
    binding: onnxruntime.IOBinding,
    outputs: Sequence[str],
    *,
    held: Mapping[str, onnxruntime.OrtValue],
    feeds: Mapping[str, Array],
    kept: Mapping[str, str],
) -> dict[str, Array]:
    """Run a graph once with bound inputs; the outputs of `kept` are the arrays of these inputs.

    Args:
        session: The session.
        binding: A binding of it; what else it has bound stays.
        outputs: The names of the outputs.
        held: The values of the inputs, by name.
        feeds: The arrays that they were made of.
        kept: Outputs that are written in the arrays of inputs; see `outputs_in_place`.
    """
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        if name in kept:
            binding.bind_ortvalue_output(name, held[kept[name]])
        else:
            binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    values = zip(outputs, binding.get_outputs(), strict=True)
    return {name: feeds[kept[name]] if name in kept else value.numpy() for name, value in values}
