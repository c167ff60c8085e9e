"""Exports of every kind that engines are made of, and how their outputs are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.manifest import read_manifest
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

    Array = np.ndarray[Any, Any]

__all__ = ["build_kinds", "require_close", "texts"]

_TOLERANCE: Final = {"float32": 1e-5, "float16": 5e-3}
"""Relative L2 errors, as everywhere: see ondevice/judge/tolerances."""


def build_kinds(tiny: TinyModels, root: Path, dtype: str, **options: Any) -> Path:
    """Build a classifier, merged and swappable, decoders and a pair below `root`; return it."""
    task = "text-classification"
    base = tiny.base("roberta", task)
    adapters = {
        "one": tiny.adapter(base, r=4, seed=1, strength=0.3),
        "two": tiny.adapter(base, r=2, seed=2, strength=0.3),
    }
    shared = {"dtype": dtype, **options}
    build(base, adapters, root / "merged", task=task, **shared)
    build(base, adapters, root / "swappable", task=task, mode="swappable", **shared)
    task = "text-generation"
    decoder = tiny.base("gpt2", task)
    own = tiny.adapter(decoder, task=task, labels_count=None)
    build(decoder, {"one": own}, root / "decoder", task=task, **shared)
    build(decoder, {"one": own}, root / "static", task=task, cache_length=24, **shared)
    task = "text2text-generation"
    pair = tiny.base("bart", task)
    own = tiny.adapter(pair, task=task, labels_count=None)
    build(pair, {"one": own}, root / "pair", task=task, **shared)
    return root


def texts(batch: int, length: int) -> dict[str, Array]:
    """Return a batch of random texts, the first row alone without padding."""
    ids = np.random.default_rng(0).integers(3, 200, (batch, length))
    mask = np.ones_like(ids)
    mask[1:, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def require_close(export_dir: Path, found: Array, expected: Array) -> None:
    """Require that outputs of an engine are those of the graph, by the export's dtype."""
    reference = expected.astype(np.float64)
    error = np.linalg.norm(found.astype(np.float64) - reference) / np.linalg.norm(reference)
    assert error <= _TOLERANCE[read_manifest(export_dir).base.dtype]
