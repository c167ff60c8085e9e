"""The inputs that latency is measured with, on this machine and on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.modes import Mode
from lora_export.exports.base_config import read_base_config
from lora_export.graph.adapters.batched_graph import ADAPTER_IDS
from lora_export.graph.spec import tasks
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import common_vocab_size, make_cases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.judge.golden_files import Case

__all__ = ["further_feeds", "latency_case"]


def latency_case(
    export_dir: Path,
    manifest: Manifest,
    *,
    batch: int,
    length: int,
    seed: int,
    config: Mapping[str, Any] | None = None,
) -> tuple[Case | None, str | None]:
    """Return an input of the base graph; None and the reason where there is none.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        batch: Batch size.
        length: Sequence length.
        seed: Seeds the values.
        config: The model's config; its copy in the export by default.
    """
    record = manifest.base_graph
    if record.encoder is not None:
        return None, "the latency of an encoder and a decoder together is not measured"
    feeding = feeding_of(export_dir, record)
    if feeding.reason:
        return None, feeding.reason
    config = read_base_config(export_dir) if config is None else config
    (case,) = make_cases(
        config,
        feeding.signature,
        seed=seed,
        left_padding=tasks.by_name(manifest.base.task).causal,
        shapes=feeding.shapes(((batch, length),)),
        vocab_size=common_vocab_size(config, manifest),
    )
    return case, None


def further_feeds(manifest: Manifest, mode: Mode, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs that a graph of `mode` has beside those of the base graph."""
    return _FURTHER[mode](manifest, batch)


def _no_feeds(_: Manifest, __: int) -> dict[str, npt.NDArray[Any]]:
    return {}


def _mixed_rows(manifest: Manifest, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Return another adapter for every row, the base among them."""
    rows = np.array([0, *manifest.rows.values()], np.int64)
    return {ADAPTER_IDS: np.resize(rows, batch)}


_FURTHER: Final[Mapping[Mode, Callable[[Manifest, int], dict[str, npt.NDArray[Any]]]]] = {
    Mode.BASE: _no_feeds,
    Mode.MERGED: _no_feeds,
    Mode.SWAPPABLE: _no_feeds,  # optional ones alone
    Mode.BATCHED: _mixed_rows,
}
