"""The memory, disk and time that a row is expected to take, from sizes of files alone.

    export    memory as of an adapter (the reference), disk the base's bytes, 12 s and 60 MB/s
    adapter   memory 900 MB and the base twice in float32 (the reference), disk twice the adapter's
    bundle, triton  memory 300 MB, disk the base's bytes, 2 s and 200 MB/s
    engine    memory five times the base's bytes, disk the base's, 2 s and 30 MB/s

The factors were measured on two cores with models of 20 M to 1.1 B parameters; they are meant for
planning, and no gate uses them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.fleet.fleet_plan import Estimate

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.fleet.row_place import Kind

__all__ = ["estimate_of", "weight_bytes"]

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".npz", ".gguf")
_SHARE: Final = {"int4": 0.3, "nf4": 0.3, "fp4": 0.3, "int8": 0.55}


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
    scheme = (settings.get("quantize") or {}).get("weights")
    stored = int(size * _SHARE.get(str(scheme), 1.0))
    if kind == "export":
        return Estimate(
            memory_bytes=(900 << 20) + 4 * size, disk_bytes=stored, seconds=12 + size / 60e6
        )
    if kind in {"bundle", "triton"}:
        return Estimate(memory_bytes=300 << 20, disk_bytes=stored, seconds=2 + size / 200e6)
    if kind == "engine":
        return Estimate(memory_bytes=5 * stored, disk_bytes=stored, seconds=2 + size / 30e6)
    own = weight_bytes(adapter) if adapter is not None else 0
    return Estimate(
        memory_bytes=(900 << 20) + 4 * size,
        disk_bytes=2 * own + (1 << 20),
        seconds=4 + size / 60e6,
    )
