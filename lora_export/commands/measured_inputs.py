"""The inputs of products, measured where a method of quantization needs them.

Running a graph on sentences is imported only then: most exports have no such method.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lora_export.weights.quantization.methods import METHODS

if TYPE_CHECKING:
    from lora_export.core.progress import Progress
    from lora_export.exports.create import MeasureMoments

__all__ = ["measure_of"]


def measure_of(method: str | None, tell: Progress) -> MeasureMoments | None:
    """Return what measures the inputs of products, for a method that needs it."""
    row = METHODS.get(method or "")
    if row is None or not row.needs_inputs:
        return None
    from lora_export.verification.product_moments import measure_moments

    return partial(measure_moments, progress=tell)
