"""What each target can run; the one copy of these facts.

Engines for NVIDIA devices will add their rows here. Sources are given per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lora_export.base.errors import UsageError

__all__ = ["DEFAULT_TARGET", "TARGETS", "Target", "by_name"]


@dataclass(frozen=True)
class Target:
    """A place where a graph runs.

    Attributes:
        name: What users type.
        dtypes: Dtypes of weights that it computes with.
        opset: The ONNX opset to export for it.
        source: Where these facts come from.
    """

    name: str
    dtypes: tuple[str, ...]
    opset: int
    source: str


TARGETS: Final[dict[str, Target]] = {
    row.name: row
    for row in (
        Target(
            "onnxruntime-cpu",
            ("float32", "float16"),
            20,
            "tried with ONNX Runtime 1.32: float16 is partial and slow, bfloat16 is refused",
        ),
        Target(
            "onnxruntime-cuda",
            ("float32", "float16", "bfloat16"),
            20,
            "ONNX Runtime's operator kernels document",
        ),
    )
}
DEFAULT_TARGET: Final = "onnxruntime-cpu"


def by_name(name: str) -> Target:
    """Return the target called `name`.

    Raises:
        UsageError: No such target is in the table.
    """
    found = TARGETS.get(name)
    if found is None:
        msg = f"unknown target {name!r}"
        raise UsageError(msg, hint=f"Known targets: {', '.join(TARGETS)}.")
    return found
