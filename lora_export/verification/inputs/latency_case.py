"""The input that latency is measured with, on this machine and on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_export.graph.spec import tasks
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import common_vocab_size, make_cases
from lora_export.weights.checkpoint import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.judge.golden_files import Case

__all__ = ["latency_case"]


def latency_case(
    root: Path,
    manifest: Manifest,
    *,
    batch: int,
    length: int,
    seed: int,
    config: Mapping[str, Any] | None = None,
) -> tuple[Case | None, str | None]:
    """Return an input of the base graph; None and the reason where there is none.

    Args:
        root: The export directory.
        manifest: Its manifest.
        batch: Batch size.
        length: Sequence length.
        seed: Seeds the values.
        config: The model's config; its copy in the export by default.
    """
    record = manifest.base_graph
    if record.encoder is not None:
        return None, "the latency of an encoder and a decoder together is not measured"
    feeding = feeding_of(root, record)
    if feeding.reason:
        return None, feeding.reason
    config = read_config(root / "hf") if config is None else config
    (case,) = make_cases(
        config,
        feeding.signature,
        seed=seed,
        left_padding=tasks.by_name(manifest.base.task).causal,
        shapes=feeding.shapes(((batch, length),)),
        vocab_size=common_vocab_size(config, manifest),
    )
    return case, None
