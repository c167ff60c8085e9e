"""A checkpoint, described from its config and headers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.inspect.counts import INDEX_DTYPES, bytes_by_dtype
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.tensors import FileTensor, nbytes
from lora_export.graph.spec import tasks
from lora_export.weights.fingerprint import dequantized_fingerprint, fingerprint
from lora_export.weights.sentence import has_pooling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.progress import Progress
    from lora_export.core.quantization_record import StoredForm
    from lora_export.core.tensors import Tensor
    from lora_export.weights.checkpoint import Checkpoint

__all__ = ["CheckpointReport", "checkpoint_report"]

_OUTPUT_EMBEDDINGS: Final = (
    "lm_head.weight",
    "lm_head.decoder.weight",
    "cls.predictions.decoder.weight",
    "embed_out.weight",
    "vocab_projector.weight",
)
_GENERATING: Final = frozenset({"text-generation", "fill-mask"})


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint; `files` and `dtypes` are in bytes, `parameters` leaves index tables out.

    Of a quantized one `parameters` counts the weights that it stands for, and `bytes`, `dtypes` and
    `fingerprint` are of what its files hold; `dequantized_fingerprint` covers the float32 values.
    """

    kind: str
    path: str
    model_type: str
    architectures: tuple[str, ...]
    task: str | None
    files: Mapping[str, int]
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    tied: str | None
    labels: tuple[str, ...] | None
    fingerprint: str | None
    quantization: StoredForm | None = None
    dequantized_fingerprint: str | None = None


def checkpoint_report(
    checkpoint: Checkpoint, *, hashed: bool, progress: Progress
) -> CheckpointReport:
    """Describe `checkpoint`; its fingerprint, for which all of it is read, only if `hashed`."""
    config = checkpoint.config
    task = _task(config, checkpoint.folder)
    floats, shared = _by_storage(checkpoint.tensors)
    distinct, _ = _by_storage(checkpoint.stored)
    total_bytes = sum(nbytes(tensor) for tensor in distinct)
    digest = values_digest = None
    if hashed:
        progress.start("hashing the checkpoint", total_bytes)
        digest = fingerprint(checkpoint, progress.advance)
    if hashed and checkpoint.quantized is not None:
        progress.start("hashing its values", sum(nbytes(tensor) for tensor in floats))
        values_digest = dequantized_fingerprint(checkpoint, progress.advance)
    architectures = config.get("architectures")
    return CheckpointReport(
        kind="checkpoint",
        path=checkpoint.source,
        model_type=str(config["model_type"]),
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        task=task,
        files=_weight_files(checkpoint),
        tensors=len(checkpoint.stored),
        parameters=sum(prod(t.shape) for t in floats if t.dtype.name not in INDEX_DTYPES),
        bytes=total_bytes,
        dtypes=bytes_by_dtype(distinct),
        tied=_tied(checkpoint, task, shared),
        labels=_labels(config),
        fingerprint=digest,
        quantization=checkpoint.stored_form,
        dequantized_fingerprint=values_digest,
    )


def _task(config: Mapping[str, Any], folder: Path) -> str | None:
    try:
        return tasks.detect(config, pools=has_pooling(folder)).name
    except (UsageError, UnsupportedError, TypeError):
        return None


def _by_storage(tensors: Mapping[str, Tensor]) -> tuple[list[Tensor], list[tuple[str, str]]]:
    """Return the tensors, each stored one once, and the pairs of names that share bytes."""
    distinct: dict[object, Tensor] = {}
    shared: list[tuple[str, str]] = []
    for name, tensor in tensors.items():
        key: object = name
        if isinstance(tensor, FileTensor) and nbytes(tensor):
            key = (tensor.file.path, tensor.start_bytes, tensor.shape, tensor.dtype.name)
        if key in distinct:
            shared.append((name, distinct[key].name))
        distinct.setdefault(key, tensor)
    return list(distinct.values()), shared


def _weight_files(checkpoint: Checkpoint) -> dict[str, int]:
    paths = {t.file.path for t in checkpoint.stored.values() if isinstance(t, FileTensor)}
    found = sorted(paths) or sorted(checkpoint.folder.glob("pytorch_model*.bin"))
    return {path.name: path.stat().st_size for path in found}


def _tied(
    checkpoint: Checkpoint, task: str | None, shared: Sequence[tuple[str, str]]
) -> str | None:
    """Return what the file and the config tell about tied weights, or None."""
    if shared:
        return "; ".join(f"{name} shares the bytes of {other}" for name, other in shared)
    if task not in _GENERATING:
        return None
    stored = next((n for n in checkpoint.tensors if n.endswith(_OUTPUT_EMBEDDINGS)), None)
    setting = checkpoint.config.get("tie_word_embeddings")
    if stored is None:
        return "no output embedding is stored: it is the input embedding"
    if setting is True:
        return f"{stored} is stored, and tie_word_embeddings is true"
    return None


def _labels(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = config.get("id2label")
    if not isinstance(names, dict) or not names:
        return None
    if all(str(key).isdigit() for key in names):
        return tuple(str(names[key]) for key in sorted(names, key=int))
    return tuple(map(str, names.values()))
