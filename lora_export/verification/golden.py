"""Golden inputs and outputs as they are written; `ondevice.judge.golden_files` reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_export.core.npz_file import npz_bytes
from lora_export.graph.spec import tasks
from lora_export.ondevice.judge.decoding import PAST, WRITE_INDICES
from lora_export.ondevice.judge.golden_checks import Reading
from lora_export.ondevice.judge.golden_files import NO_EFFECT_KNOWN
from lora_export.verification.inputs.feeding import feeding_of

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.ondevice.judge.golden_files import Golden

__all__ = ["golden_bytes", "golden_file", "reading_of"]

Array = npt.NDArray[Any]


def golden_file(graph: str) -> str:
    """Return the path of a graph's golden file, relative to the export."""
    return f"golden/{graph}.npz"


def golden_bytes(golden: Golden) -> bytes:
    """Return the contents of a golden file.

    The buffers of a static cache, in which nothing is written, are left out.

    Keys: ``{i}.input.{name}``, ``{i}.mask``, ``{i}.expected`` for case i; ``count``; ``effect``;
    ``switch`` where it is not None.
    """
    effect = NO_EFFECT_KNOWN if golden.effect is None else golden.effect
    arrays: dict[str, Array] = {
        "effect": np.array(effect, np.float64),
        "count": np.array(len(golden.cases), np.int64),
    }
    if golden.switch is not None:
        arrays["switch"] = np.array(golden.switch, np.int64)
    for index, (case, expected) in enumerate(zip(golden.cases, golden.expected, strict=True)):
        static = WRITE_INDICES in case.feeds
        kept = {n: v for n, v in case.feeds.items() if not (static and n.startswith(PAST))}
        arrays |= {f"{index}.input.{name}": value for name, value in kept.items()}
        arrays[f"{index}.mask"] = case.mask
        arrays[f"{index}.expected"] = expected
    return npz_bytes(arrays)


def reading_of(export_dir: Path, manifest: Manifest, record: GraphRecord) -> Reading:
    """Return the way in which the outputs of a graph are read, to be compared with golden ones.

    Args:
        export_dir: The export.
        manifest: Its manifest.
        record: The graph.
    """
    task = tasks.by_name(manifest.base.task)
    return Reading(
        feeding_of(export_dir, record).outputs_for(task.outputs),
        task.per_token,
        task.classifies,
        manifest.base.logits == "last",
    )
