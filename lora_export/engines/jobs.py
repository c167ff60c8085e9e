"""The build jobs of an export: its graphs, each with its profiles and settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.graph_forms import ORT_FORM
from lora_export.core.modes import BASE_GRAPH, Mode
from lora_export.core.safetensors_file import read_header
from lora_export.core.targets import PRECISIONS, dtype_of_precision, require_engine_target
from lora_export.engines.ahead_of_time import ahead_of_time
from lora_export.engines.profiles import RANK, axes_of, profiles_of
from lora_export.engines.quantized_weights import looks_up_integers
from lora_export.engines.refittable import refit_rows, refittable_weights
from lora_export.exports.base_config import has_base_config, read_base_config
from lora_export.exports.stored_adapters import form_of, shared_graphs
from lora_export.graph.adapters.required_inputs import without_defaults
from lora_export.graph.adapters.swappable_graph import optional_inputs
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.engine_builder import BuildJob
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.weights.positions import longest_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_export.core.manifest import GraphRecord, Manifest
    from lora_export.core.targets import Target
    from lora_export.engines.engine_options import EngineOptions
    from lora_export.engines.profiles import AxisRange
    from lora_export.graph.spec.signature import Input
    from lora_export.ondevice.trt.build_settings import Profile

__all__ = ["graphs_to_build", "jobs_of", "profiles_for", "require_portable_graphs", "stem_of"]

_UNKNOWN_LENGTH: Final = 512
_TEXT: Final = "sequence"
_READ: Final = "encoder_sequence"
"""What the decoder of a pair calls the length of the text that the encoder reads."""


def graphs_to_build(
    manifest: Manifest, names: Sequence[str], *, refit: bool = False
) -> tuple[str, ...]:
    """Return the graphs that are built: those named, else the ones that serve adapters.

    That is the graph which adapters share, or each adapter's own; the base's where they are put in
    by a refit, or where there are none.

    Raises:
        UsageError: The export has no graph of a name.
    """
    for name in names:
        if name not in manifest.graphs:
            msg = f"the export has no graph {name!r}"
            raise UsageError(msg, hint=f"It has: {', '.join(manifest.graphs)}.")
    if names:
        return tuple(dict.fromkeys(names))
    shared = shared_graphs(manifest)
    own = tuple(each for each in manifest.graphs if each != BASE_GRAPH)
    return (BASE_GRAPH,) if refit else shared or own or (BASE_GRAPH,)


def stem_of(onnx: str) -> str:
    """Return the name of an ONNX file's engine: ``decoder.one`` of ``decoder.one.onnx``."""
    return onnx.removesuffix(".onnx")


def jobs_of(
    export_dir: Path,
    manifest: Manifest,
    target: str,
    graphs: Sequence[str],
    options: EngineOptions,
) -> list[BuildJob]:
    """Return a job for each ONNX file of the graphs; nothing but headers and graphs is read.

    Args:
        export_dir: The export.
        manifest: Its manifest.
        target: The device.
        graphs: Names of graphs; see `graphs_to_build`.
        options: How they are built.

    Raises:
        UsageError: The target, an option or a profile is wrong.
        UnsupportedError: The target lacks the precision, a graph cannot be deployed, or graphs have
            the form of ONNX Runtime.
        ExportDirectoryError: A graph is damaged.
    """
    row = require_engine_target(target, rtx=options.library == TENSORRT_RTX)
    require_portable_graphs(manifest)
    precision = _require_precision(manifest, row, options.precision)
    if options.library == TENSORRT_RTX:
        options = ahead_of_time(options, row, precision, _schemes(manifest, graphs))
    for name in graphs:
        if not options.refit:
            _require_values(name, manifest.graphs[name].missing)
    return [
        _job(
            export_dir,
            manifest,
            manifest.graphs[name],
            onnx,
            target=target,
            precision=precision,
            options=options,
        )
        for name in graphs
        for onnx in manifest.graphs[name].graph_files
    ]


def require_portable_graphs(manifest: Manifest) -> None:
    """Require of an export that its graphs have ONNX's own operators.

    Raises:
        UnsupportedError: They have the form of ONNX Runtime.
    """
    if form_of(manifest) == ORT_FORM:
        msg = f"the graph form {ORT_FORM!r} has operators of ONNX Runtime that TensorRT does not"
        raise UnsupportedError(msg, hint="Export again without --graph-form.")


def _schemes(manifest: Manifest, graphs: Sequence[str]) -> set[str]:
    """Return the schemes of the quantized weights that graphs read, the base's own included."""
    read = {BASE_GRAPH, *graphs}
    uses = (use for uses in manifest.parameters.values() for use in uses if use.graph in read)
    return {use.quantized.scheme for use in uses if use.quantized is not None}


def _require_values(graph: str, missing: Sequence[str]) -> None:
    """Require of a graph that it has all values, or gets them by a refit."""
    if missing:
        msg = f"the graph {graph!r} has no values for {missing[0]!r}"
        raise UnsupportedError(msg, hint="Only an adapter brings them: build its graph.")


def _require_precision(manifest: Manifest, row: Target, precision: str | None) -> str:
    """Return the dtype of the export, which is the engine's: the network is strongly typed."""
    dtype = manifest.base.dtype
    words = {dtype: word for word, dtype in PRECISIONS.items()}
    if precision is not None and dtype_of_precision(precision, row) != dtype:
        msg = f"the export is {dtype}, not {precision}: an engine has the precision of its graph"
        wanted = PRECISIONS[precision]
        raise UsageError(msg, hint=f"Export again with --dtype {wanted}, or leave --precision out.")
    if dtype not in words:
        msg = f"no engine can be built in {dtype}, the dtype of the export"
        raise UnsupportedError(msg, hint=f"Export with --dtype {' or '.join(words)}.")
    return dtype_of_precision(words[dtype], row)


def _job(
    export_dir: Path,
    manifest: Manifest,
    record: GraphRecord,
    onnx: str,
    *,
    target: str,
    precision: str,
    options: EngineOptions,
) -> BuildJob:
    data = read_graph(resolve_inside(export_dir, onnx))
    required = without_defaults(data) if record.mode is Mode.SWAPPABLE else data
    if options.strip_weights and required is not data:
        msg = f"a plan of {onnx!r} cannot leave its weights out: the graph is rewritten for it"
        raise UsageError(msg, hint="Leave --strip-weights out.")
    refittable: tuple[str, ...] = ()
    if options.refit:
        if record.encoder is not None:
            msg = f"the graph {stem_of(onnx)!r} is one of two: weights are put into a single engine"
            raise UnsupportedError(msg, hint="Leave --refit out: each adapter has its engines.")
        if record.is_shared:
            msg = f"the graph {stem_of(onnx)!r} takes its adapters as inputs"
            raise UsageError(msg, hint="--refit is for graphs of mode base or merged.")
        refittable = refittable_weights(export_dir, manifest, onnx, required)
        _require_values(stem_of(onnx), [n for n in record.missing if n not in refittable])
    settings = BuildSettings(
        precision=precision,
        profiles=profiles_for(export_dir, manifest, onnx, data, options.profiles),
        workspace_bytes=options.workspace_bytes,
        optimization_level=options.optimization_level,
        tf32=options.tf32,
        version_compatible=options.version_compatible,
        hardware_compatibility=options.hardware_compatibility,
        strip_weights=options.strip_weights,
        refittable=refittable,
        compute_capabilities=options.compute_capabilities,
    )
    return BuildJob(
        root=export_dir,
        graph=stem_of(onnx),
        target=target,
        onnx=onnx,
        weights=tuple(record.weights),
        sha256=manifest.files,
        base_fingerprint=manifest.base.fingerprint,
        settings=settings,
        refit=refit_rows(manifest) if refittable else {},
        model=None if required is data else required,
        library=options.library,
        needs_edits=looks_up_integers(required),
    )


def profiles_for(
    export_dir: Path,
    manifest: Manifest,
    onnx: str,
    data: bytes,
    given: Sequence[Mapping[str, AxisRange]],
) -> tuple[Profile, ...]:
    """Return the profiles of a graph, the defaults cut to what the model and its adapters are.

    A profile that the user gives is for every graph of the export, as far as it has the axes. Where
    an encoder and a decoder share one, ``encoder_sequence`` is the text that the encoder reads.

    Args:
        export_dir: The export.
        manifest: Its manifest.
        onnx: The ONNX file of the graph.
        data: What it holds.
        given: What the user says of axes.

    Raises:
        UsageError: See `profiles_of`.
    """
    encoders = {each.encoder.onnx for each in manifest.graphs.values() if each.encoder is not None}
    if onnx in encoders:
        given = [{**each, _TEXT: each[_READ]} if _READ in each else each for each in given]
    return profiles_of(
        _inputs(data),
        given,
        longest=_longest(export_dir),
        ranks=[each.rank for each in manifest.adapters.values()],
        widths=_widths(export_dir, manifest, data),
        others=_axes(export_dir, manifest) if given else (),
    )


def _inputs(data: bytes) -> tuple[Input, ...]:
    return read_signature(parse_onnx(without_defaults(data))).inputs


def _longest(export_dir: Path) -> int:
    """Return how many positions the model has, as far as the export tells."""
    if not has_base_config(export_dir):
        return _UNKNOWN_LENGTH
    return longest_text(read_base_config(export_dir))


def _axes(export_dir: Path, manifest: Manifest) -> set[str]:
    """Return the axes of all graphs of an export; a merged one has those of the base."""
    found: set[str] = set()
    for record in manifest.graphs.values():
        if record.mode is not Mode.MERGED:
            for file in record.graph_files:
                found |= axes_of(_inputs(read_graph(resolve_inside(export_dir, file))))
    return found


def _widths(export_dir: Path, manifest: Manifest, data: bytes) -> dict[str, list[int]]:
    """Return the sizes that the base and each pack give the axes of optional inputs, ranks apart.

    The width of a head is one: every adapter may bring its own.
    """
    inputs = optional_inputs(data)
    shapes = [{each.name: tuple(each.dims) for each in parse_onnx(data).graph.initializer}]
    for adapter in manifest.adapters.values():
        if adapter.pack is not None:
            tensors, _ = read_header(resolve_inside(export_dir, adapter.pack.safetensors))
            shapes.append({name: tensor.shape for name, tensor in tensors.items()})
    found: dict[str, list[int]] = {}
    for name, axes in inputs.items():
        for held in shapes:
            for axis, size in zip(axes, held.get(name, ()), strict=False):
                if isinstance(axis, str) and not axis.endswith(f".{RANK}"):
                    found.setdefault(axis, []).append(size)
    return found
