"""The inputs that a graph can be given: known names, fixed axes, the output to compare.

A traced graph takes any batch and length. One that the user brought may have fixed axes, other
names for them, further inputs and other names for its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from lora_export.core.dtypes import by_name
from lora_export.core.files import resolve_inside
from lora_export.graph.spec.onnx_file import read_onnx
from lora_export.graph.spec.signature import (
    PAST,
    PRESENT,
    WRITE_INDICES,
    Input,
    Signature,
    read_signature,
)
from lora_export.verification.inputs.random_inputs import DECODER_IDS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord

__all__ = ["Feeding", "feeding_of", "fixed_axes", "signature_of_file"]

_TEXT: Final = ("input_ids", "attention_mask", "token_type_ids", "position_ids", DECODER_IDS)
_CACHE_AXES: Final = {0: "batch", 2: "past_sequence"}
_CACHE_RANK: Final = 4
_SHOWN: Final = 3


@dataclass(frozen=True)
class Feeding:
    """The interface of a graph, as far as it can be fed.

    Attributes:
        signature: Its inputs and outputs, the axes of a cache under our names.
    """

    signature: Signature

    @property
    def reason(self) -> str | None:
        """The reason why the graph cannot be fed here; None where it can."""
        inputs = self.signature.inputs
        if unknown := [each.name for each in inputs if not _is_known(each)]:
            return f"the graph takes {', '.join(unknown[:_SHOWN])}, which is not fed here"
        return None if inputs else "the graph has no inputs"

    @property
    def cache_reason(self) -> str | None:
        """The reason why a cache cannot be filled step by step; None if it can, or is absent."""
        inputs, outputs = self.signature.inputs, self.signature.output_names
        past = [each for each in inputs if each.name.startswith(PAST)]
        for each in past:
            present = PRESENT + each.name.removeprefix(PAST)
            if present not in outputs:
                return f"the graph takes {each.name} and returns no {present}"
        static = WRITE_INDICES in self.signature.input_names
        fixed = [] if static else [*past, *(each for each in inputs if each.name in _TEXT)]
        for each in fixed if past else ():
            at = 2 if each.name.startswith(PAST) else 1
            axis = each.axes[at] if len(each.axes) > at else None
            if isinstance(axis, int):
                return f"the graph has a cache, and the length of {each.name} is always {axis}"
        return None

    @property
    def room(self) -> int | None:
        """The positions of a static cache; None where there is none."""
        return fixed_axes(self.signature)[2]

    def outputs_for(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Return the outputs called `wanted`, else as many: models return their results first."""
        names = self.signature.output_names
        return tuple(wanted) if set(wanted) <= set(names) else names[: len(wanted)]

    def shapes(self, wanted: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Return batches and lengths like those `wanted` that the graph takes, each once.

        A static cache bounds the lengths.
        """
        rows, tokens, room = fixed_axes(self.signature)
        kept = ((rows or batch, tokens or min(length, room or length)) for batch, length in wanted)
        return tuple(dict.fromkeys(kept))


def fixed_axes(signature: Signature) -> tuple[int | None, int | None, int | None]:
    """Return the rows and the tokens that a graph takes, and the positions of a static cache.

    None where any number will do.
    """
    fixed: list[int | None] = [None, None]
    room: int | None = None
    static = WRITE_INDICES in signature.input_names
    for each in signature.inputs:
        if each.name in _TEXT:
            for position, axis in enumerate(each.axes[:2]):
                if not isinstance(axis, int):
                    continue
                if static and each.name == "attention_mask" and position == 1:
                    room = axis
                else:
                    fixed[position] = axis
    return fixed[0], fixed[1], room


def _is_known(given: Input) -> bool:
    """Whether values can be made up for an input: text, an empty past, numbers of a known shape."""
    if given.name in (*_TEXT, WRITE_INDICES):
        return True
    if given.name.startswith(PAST) and len(given.axes) != _CACHE_RANK:
        return False
    known = {"batch", *(("sequence", "past_sequence") if given.name.startswith(PAST) else ())}
    named = {axis for axis in given.axes if isinstance(axis, str)}
    return by_name(given.dtype).floating and named <= known


def _with_our_axes(given: Input) -> Input:
    """Name the axes of keys and values ``[batch, heads, past, width]`` as traced graphs do."""
    if not given.name.startswith(PAST) or len(given.axes) != _CACHE_RANK:
        return given
    axes = tuple(
        _CACHE_AXES.get(at, axis) if isinstance(axis, str) else axis
        for at, axis in enumerate(given.axes)
    )
    return replace(given, axes=axes)


def signature_of_file(export_dir: Path, file: str) -> Signature:
    """Return the interface of a graph; its weights are not read."""
    return read_signature(read_onnx(resolve_inside(export_dir, file)))


def feeding_of(export_dir: Path, record: GraphRecord) -> Feeding:
    """Read the inputs and outputs of a graph, without opening a session."""
    signature = signature_of_file(export_dir, record.onnx)
    if record.encoder is not None:  # together they take what the encoder does, and a text
        text = Input(DECODER_IDS, "int64", ("batch", "sequence"))
        encoder = signature_of_file(export_dir, record.encoder.onnx).inputs
        signature = Signature((*encoder, text), signature.outputs[:1])
    return Feeding(replace(signature, inputs=tuple(map(_with_our_axes, signature.inputs))))
