"""TensorRT engines of an export, by the compute capability that they were built for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from lora_export.core.dtypes import by_name
from lora_export.core.engine_record import EngineRecord, read_engine_record
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.ondevice.trt.build_record import FOLDER, read_record, require_files, require_plan
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.libraries import TENSORRT, library_title
from lora_export.triton.graph_io import DATA_TYPES, Interface, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.engine_record import TensorRecord
    from lora_export.core.manifest import Manifest

__all__ = ["Engines", "engines_for"]

_BUILD = "Build one on a machine with the server's GPU: lora-export build"


@dataclass(frozen=True)
class Engines:
    """The plans of one graph.

    Attributes:
        plans: The plan for each compute capability (``8.7``).
        interface: What they read and return.
        largest_batch: The largest batch that all of them take; None where it is not the caller's.
    """

    plans: Mapping[str, Path]
    interface: Interface
    largest_batch: int | None


def engines_for(export_dir: Path, manifest: Manifest, graph: str) -> Engines:
    """Return the engines of a graph, each compared with its record and with the export.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        graph: The graph's name.

    Raises:
        UnsupportedError: There is none, or a server cannot run one.
        UsageError: There are two for one capability, or they differ in what they read.
        DeviceError: A plan is not what its record says, or was made of other files.
    """
    stem = PurePosixPath(manifest.graphs[graph].onnx).stem
    folder = resolve_inside(export_dir, FOLDER)
    plans: dict[str, Path] = {}
    interfaces: dict[str, Interface] = {}
    batches = []
    for found in sorted(folder.glob("*.plan")) if folder.is_dir() else ():
        if not found.name.startswith(f"{stem}."):
            continue
        path = resolve_inside(export_dir, f"{FOLDER}/{found.name}")
        record = read_engine_record(path)
        if record.adapter is not None:
            continue  # a refit of this graph's engine: another adapter's
        if record.gpu is None:
            continue  # of TensorRT for RTX, built ahead of time: a server runs TensorRT
        _require_servable(path, record, manifest)
        capability = record.gpu.compute_capability
        if capability in plans:
            msg = f"{plans[capability].name!r} and {path.name!r} are both for {capability}"
            raise UsageError(msg, hint="Keep the one of the server's TensorRT version.")
        plans[capability] = path
        interfaces[capability] = Interface(
            _tensors(record.inputs), (), _tensors(record.outputs), files={}
        )
        batches.append(_largest_batch(path, record))
    if not plans:
        msg = f"the export {str(export_dir)!r} has no TensorRT engine of {graph!r}"
        raise UnsupportedError(msg, hint=_BUILD)
    first = next(iter(interfaces.values()))
    for capability, other in interfaces.items():
        if other != first:
            msg = f"the engines of {graph!r} have different inputs: that for {capability}"
            raise UsageError(msg, hint="Build them with the same settings.")
    sizes = [each for each in batches if each is not None]
    return Engines(plans, first, min(sizes, default=None))


def _require_servable(path: Path, record: EngineRecord, manifest: Manifest) -> None:
    table = read_record(path)
    require_plan(path, table)
    require_files(table, manifest.files, manifest.base.fingerprint)
    if record.library != TENSORRT:
        made = library_title(record.library)
        msg = f"the plan {path.name!r} was built by {made}, and a server runs plans of TensorRT"
        raise UnsupportedError(msg, hint=_BUILD)
    if record.settings.get("strip_weights"):
        msg = f"the plan {path.name!r} has no weights, and Triton does not restore them"
        raise UnsupportedError(msg, hint="Build it without --strip-weights.")


def _largest_batch(path: Path, record: EngineRecord) -> int | None:
    """Return the most rows that the profiles take; None where the batch has one size."""
    profiles = BuildSettings.from_json(record.settings).profiles
    ranges = [each for profile in profiles for each in profile.values() if each.max]
    if not ranges:
        return None
    if max(each.min[0] for each in ranges) > 1:
        msg = f"the plan {path.name!r} takes no batch of one row, which a server begins with"
        raise UnsupportedError(msg, hint="Build it with a profile whose smallest batch is 1.")
    return min(each.max[0] for each in ranges)


def _tensors(rows: Mapping[str, TensorRecord]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name, DATA_TYPES[by_name(row.dtype).onnx], tuple(row.shape))
        for name, row in rows.items()
    )
