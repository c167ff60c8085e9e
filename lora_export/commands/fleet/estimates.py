"""The memory, disk and time that a row is expected to take, from sizes of files alone.

    export    memory as of an adapter (the reference), disk the base's bytes, 12 s and 60 MB/s
    adapter   memory 900 MB and the base twice in float32 (the reference), 4 s and 60 MB/s; disk
              twice the adapter's bytes, of a merged one the weights that it changes
    bundle, triton  memory 300 MB, disk the base's bytes, 2 s and 200 MB/s
    engine    memory five times the base's bytes, disk the base's, 2 s and 30 MB/s

The factors were measured on two cores with models of 20 M to 1.1 B parameters; they are meant for
planning, and no gate uses them.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.read_spec import read_spec
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import LoraExportError
from lora_export.core.modes import Mode
from lora_export.core.safetensors_file import read_header
from lora_export.fleet.fleet_plan import Estimate
from lora_export.weights.checkpoint import read_config

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.fleet.row_place import Kind

__all__ = ["estimate_of", "weight_bytes"]

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".npz", ".gguf")
_SHARE: Final = {"int4": 0.15, "nf4": 0.15, "fp4": 0.15, "int8": 0.27}
"""Bytes of quantized weights, of four bytes in float32."""

_ITEM_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
_ADAPTER_FILE: Final = "adapter_model.safetensors"
_FIXED_BYTES: Final = 1 << 20


def weight_bytes(path: Path) -> int:
    """Return the bytes of the weight files of a checkpoint or an adapter."""
    if path.is_file():
        return path.stat().st_size
    return sum(
        each.stat().st_size for each in path.iterdir() if each.suffix in _WEIGHTS and each.is_file()
    )


def estimate_of(
    kind: Kind, base: Path, settings: dict[str, Any], adapter: Path | None = None
) -> Estimate:
    """Return what a row is expected to take.

    Args:
        kind: Its kind.
        base: The base checkpoint.
        settings: Its settings of a recipe.
        adapter: Its adapter.
    """
    size = weight_bytes(base)
    item = _item_bytes(base, settings)
    stored = int(size * item / _base_item_bytes(base))
    if kind == "export":
        return Estimate(
            memory_bytes=(900 << 20) + 4 * size, disk_bytes=stored, seconds=12 + size / 60e6
        )
    if kind in {"bundle", "triton"}:
        return Estimate(memory_bytes=300 << 20, disk_bytes=stored, seconds=2 + size / 200e6)
    if kind == "engine":
        return Estimate(memory_bytes=5 * stored, disk_bytes=stored, seconds=2 + size / 30e6)
    merged = Mode(settings.get("mode") or Mode.MERGED) is Mode.MERGED
    values = _changed_values(adapter) if adapter is not None and merged else None
    own = weight_bytes(adapter) if adapter is not None else 0
    return Estimate(
        memory_bytes=(900 << 20) + 4 * size,
        disk_bytes=(2 * own if values is None else int(values * item)) + _FIXED_BYTES,
        seconds=4 + size / 60e6,
    )


def _item_bytes(base: Path, settings: dict[str, Any]) -> float:
    """Return the bytes of a weight as it is stored."""
    scheme = (settings.get("quantize") or {}).get("weights")
    if scheme in _SHARE:
        return 4 * _SHARE[scheme]
    return _ITEM_BYTES.get(str(settings.get("dtype")), _base_item_bytes(base))


@functools.lru_cache(maxsize=64)
def _base_item_bytes(base: Path) -> int:
    """Return the bytes of a weight of a checkpoint, as its config says."""
    try:
        config = read_config(base)
    except (LoraExportError, OSError):
        return 4  # its own row says what is wrong with it
    return _ITEM_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4)


_COUNTED: Final[dict[tuple[Any, ...], int | None]] = {}
"""The values that adapters change, by the names and shapes of their tensors: most are alike."""


def _changed_values(adapter: Path) -> int | None:
    """Return how many values of the base an adapter changes; None where that cannot be told."""
    try:
        header, _ = read_header(adapter / _ADAPTER_FILE if adapter.is_dir() else adapter)
    except (LoraExportError, OSError):
        return None
    shapes = tuple(sorted((name, each.shape) for name, each in header.items()))
    if shapes not in _COUNTED:
        _COUNTED[shapes] = _count(adapter)
    return _COUNTED[shapes]


def _count(adapter: Path) -> int | None:
    try:
        found = read_spec(AdapterSpec(name="counted", source=str(adapter)))
    except LoraExportError:
        return None
    merged = sum(each.b.shape[0] * math.prod(each.a.shape[1:]) for each in found.low_rank)
    return merged + sum(math.prod(each.tensor.shape) for each in found.saved)
