"""New values for an engine's refittable weights: merged from the base, never by subtraction.

Every refit sets all refittable weights: the adapter's merged values, and the base's own for the
others. So what an engine computes depends on the adapter alone, not on what was in it before, and
the base comes back exactly.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_export.core.engine_record import read_engine_record
from lora_export.core.errors import UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import BASE_GRAPH
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import read_all
from lora_export.engines.refittable import changed_weights
from lora_export.exports.at_load import merged_values
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.exports.outside_adapter import resolve_source
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.trt.api import Log, import_tensorrt
from lora_export.ondevice.trt.build_record import plan_file
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.cuda import open_cuda
from lora_export.ondevice.trt.engine_builder import BuildJob, publish
from lora_export.ondevice.trt.libraries import library_of
from lora_export.ondevice.trt.plan_opening import checked_plan, loaded_engine
from lora_export.ondevice.trt.refit import refit, serialized
from lora_export.ondevice.trt.trt_runner import TrtRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.adapter_spec import AdapterSpec
    from lora_export.core.manifest import Manifest
    from lora_export.ondevice.graph_runner import GraphRunner

    Array = npt.NDArray[Any]
    from lora_export.ondevice.trt.record_table import BuildRecord

__all__ = ["base_supply", "refit_plan", "refit_values"]


def refit_values(
    export_dir: Path,
    manifest: Manifest,
    record: BuildRecord,
    name: str,
    source: AdapterSpec | None,
) -> dict[str, Array]:
    """Return the value of every refittable weight of an engine, with an adapter or the base's.

    Args:
        export_dir: The export.
        manifest: Its manifest.
        record: The engine's build record.
        name: The adapter; ``base`` is none.
        source: Where it is, where the export does not hold it.

    Raises:
        UnsupportedError: The adapter changes a weight that is not refittable, or its shape.
        LoraExportError: The adapter or the export is damaged, or they do not fit.
    """
    changed = _changed(export_dir, manifest, name, source)
    rows = record["refit"]
    refittable = {each for each, row in rows.items() if not row.get("neighbour")}
    if left := sorted(set(changed) - refittable):
        msg = f"adapter {name!r} changes {left[0]!r}, which the engine cannot change"
        hint = "Add the adapter to the export, and build with --refit again."
        raise UnsupportedError(msg, hint=hint)
    for each, values in changed.items():
        if list(values.shape) != rows[each]["shape"]:
            msg = (
                f"adapter {name!r} brings {each!r} of shape {list(values.shape)}, the engine has "
                f"{rows[each]['shape']}"
            )
            raise UnsupportedError(
                msg, hint="A refit changes no shape: build an engine of its own."
            )
    supply = base_supply(export_dir, record)
    unchanged = {each: supply(each) for each in sorted(refittable - set(changed))}
    if lost := [each for each, values in unchanged.items() if values is None]:
        msg = f"{BASE_WEIGHTS} has no weight {lost[0]!r} to go back to"
        raise UnsupportedError(msg, hint="Build the engine again.")
    return {**changed, **{each: values for each, values in unchanged.items() if values is not None}}


def _changed(
    export_dir: Path, manifest: Manifest, name: str, source: AdapterSpec | None
) -> dict[str, Array]:
    if source is not None:
        return merged_values(
            export_dir, manifest, resolve_source(export_dir, manifest, name, source)
        )
    if name == BASE_GRAPH:
        return {}
    return {
        each: read_all(tensor)
        for each, tensor in changed_weights(export_dir, manifest, name).items()
    }


def base_supply(export_dir: Path, record: BuildRecord) -> Callable[[str], Array | None]:
    """Return a function that finds the base's value of a weight, in its file or in the graph."""
    tensors, _ = read_header(resolve_inside(export_dir, BASE_WEIGHTS))

    def supply(name: str) -> Array | None:
        if name in tensors:
            return read_all(tensors[name])
        from onnx import numpy_helper

        (onnx,) = record["onnx"]
        for each in parse_onnx(read_graph(resolve_inside(export_dir, onnx))).graph.initializer:
            if each.name == name and not each.external_data:
                return numpy_helper.to_array(each)
        return None

    return supply


def refit_plan(
    export_dir: Path,
    manifest: Manifest,
    target: str,
    name: str,
    *,
    source: AdapterSpec | None = None,
    graph: str = BASE_GRAPH,
    check: Callable[[GraphRunner], None] | None = None,
) -> BuildRecord:
    """Write the plan of an adapter, made from a refittable engine of the base; return its record.

    The base's plan stays as it is. The new one is loaded like one that was built, and is not
    refittable itself: the next adapter begins with the base again.

    Args:
        export_dir: The export.
        manifest: Its manifest.
        target: The device.
        name: The adapter; the engine is called so.
        source: Where it is, where the export does not hold it.
        graph: The graph of the refittable engine.
        check: Called with the refitted engine before its plan is written; what it raises stops the
            refit.

    Raises:
        LoraExportError: The engine is missing or does not fit this device, this version or the
            export; the adapter does not fit the engine; or TensorRT refuses. Nothing is written.
    """
    module = import_tensorrt()
    cuda = open_cuda()
    version = str(module.__version__)
    file = plan_file(graph, target, version)
    started = time.monotonic()
    plan, record = checked_plan(export_dir, file, manifest.files, manifest.base.fingerprint, cuda)
    if not read_engine_record(resolve_inside(export_dir, file)).refit:
        msg = f"the engine {file!r} was not built to be refitted"
        raise UnsupportedError(msg, hint=f"lora-export build OUT --target {target} --refit")
    values = refit_values(export_dir, manifest, record, name, source)
    log = Log(module)
    engine = loaded_engine(export_dir, plan, record, log)
    supplied = refit(engine, values, log, supply=base_supply(export_dir, record))
    if check is not None:
        with TrtRunner(engine, cuda) as runner:
            check(runner)
    own = manifest.graphs.get(name) if source is None else None
    job = BuildJob(
        root=export_dir,
        graph=name,
        target=target,
        onnx=next(iter(record["onnx"])) if own is None else own.onnx,
        weights=tuple(record["weights"]) if own is None else tuple(own.weights),
        sha256=manifest.files,
        base_fingerprint=manifest.base.fingerprint,
        settings=replace(
            BuildSettings.from_json(record["settings"]), refittable=(), strip_weights=False
        ),
    )
    return publish(
        job,
        serialized(engine, log),
        library=library_of(module),
        tensorrt=version,
        cuda=cuda,
        details={
            "flags": list(record["flags"]),
            "tool": "refit",
            "command": None,
            "inputs": record["inputs"],
            "outputs": record["outputs"],
            "adapter": {
                "adapter": name,
                "adapter_sha256": _hash_of(export_dir, manifest, name, source),
                "plan": file,
                "plan_sha256": record["plan"]["sha256"],
                "supplied": list(supplied),
            },
            "seconds": round(time.monotonic() - started, 3),
            "peak_device_bytes": 0,
        },
    )


def _hash_of(export_dir: Path, manifest: Manifest, name: str, source: AdapterSpec | None) -> str:
    if source is not None:
        return resolve_source(export_dir, manifest, name, source).adapter.sha256
    return manifest.adapters[name].sha256
