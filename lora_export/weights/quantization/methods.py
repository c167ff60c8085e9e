"""The methods that choose the scale of a block, as data.

A block is B values ``w`` of one column that share a scale ``s``; ``q = clip(round(w / s))`` are the
integers, ``q·s`` is the value that a graph computes. With m = max|w|:

    nearest    s = m / q_max, the integers rounded to nearest, ties to even
    search     of s = m / c, for c in `candidates`, the one with the least ‖w − q s‖² when its
               integers are kept and s is replaced by the best one for them, s = <w,q> / <q,q>;
               then `refinements` rounds of new integers and new best s (Lloyd's algorithm). The
               result of `nearest` is taken where that is better after the scale is rounded
    signed     the same with negative scales too. Int4 reaches to −8 and only to 7: with the sign
               that brings the largest value to −8, a block has one more step. ONNX Runtime takes
               such scales, its own quantizer makes them, and TensorRT for RTX builds them;
               TensorRT's parser refuses them ("Scale coefficients must all be positive")

    gptq       the scales of `search`, and integers whose errors cancel for what the product is
               given (`error_feedback`): the model is run on sentences to see that

With c > q_max + ½ the largest values are clipped, with a gain for the many others. docs/adr/0024
and 0033 have what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DEFAULT_METHOD", "METHODS", "NEAREST", "Method", "steps_of"]

_INT4: Final = tuple(5 + step * 0.4 for step in range(16))
_INT8: Final = tuple(118 + step * 2 / 3 for step in range(16))


@dataclass(frozen=True)
class Method:
    """One way to choose scales.

    Attributes:
        summary: A phrase for help texts.
        candidates: Bits → the quotients c = max|w| / s that are tried beside that of `nearest`.
        refinements: How often integers and scale are improved in turn after the best candidate.
        needs_inputs: Whether integers depend on what the weights are multiplied with.
    """

    summary: str
    candidates: Mapping[int, tuple[float, ...]]
    refinements: int = 0
    needs_inputs: bool = False

    @property
    def negative_scales(self) -> bool:
        """Whether scales may be negative, which TensorRT's parser refuses."""
        return any(c < 0 for each in self.candidates.values() for c in each)


METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        "nearest": Method(
            summary="round to nearest, the scale from the largest magnitude",
            candidates=MappingProxyType({4: (), 8: ()}),
        ),
        "search": Method(
            summary="round to nearest, the scale searched for the least squared error",
            candidates=MappingProxyType({4: _INT4, 8: _INT8}),
            refinements=1,
        ),
        "signed": Method(
            summary="as search, with int4 scales of both signs: less error, not for TensorRT",
            candidates=MappingProxyType({4: (*_INT4, *(-c for c in _INT4)), 8: _INT8}),
            refinements=1,
        ),
        "gptq": Method(
            summary="as search, errors cancelled for inputs that the model is run for",
            candidates=MappingProxyType({4: _INT4, 8: _INT8}),
            refinements=1,
            needs_inputs=True,
        ),
    }
)
"""The names that recipes and command lines use."""

DEFAULT_METHOD: Final = "search"
NEAREST: Final = "nearest"


def steps_of(method: str) -> float:
    """Return the largest distance of an integer from its weight over its scale.

    Of a method that a later version has, nothing more is known than that it rounds up or down.

    >>> steps_of("search"), steps_of("gptq")
    (0.5, 1.0)
    """
    row = METHODS.get(method)
    return 0.5 if row is not None and not row.needs_inputs else 1.0
