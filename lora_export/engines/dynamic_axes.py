"""Dynamic axes checked against the optimization profiles of a build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.engines.findings import Finding
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from lora_export.core.errors import LoraExportError
    from lora_export.engines.graph_view import GraphView
    from lora_export.ondevice.trt.build_settings import Profile

__all__ = ["check_axes", "largest_sizes"]


def check_axes(
    view: GraphView, profiles: Sequence[Profile], why: LoraExportError | None = None
) -> Iterator[Finding]:
    """Yield the inputs with a dynamic axis that a profile lacks; note what the profiles cover.

    Args:
        view: The graph, its optional inputs as plain ones.
        profiles: What an engine would be built for.
        why: What kept profiles from being made, where there are none.
    """
    dynamic = {
        value.name: [
            axis.dim_param or f"{value.name}.{at}"
            for at, axis in enumerate(_axes(value))
            if _is_dynamic(axis)
        ]
        for value in view.model.graph.input
        if any(map(_is_dynamic, _axes(value)))
    }
    bare = [name for name in dynamic if not profiles or any(name not in each for each in profiles)]
    if bare:
        axes = dict.fromkeys(axis for name in bare for axis in dynamic[name])
        shown = dict.fromkeys(axis.rpartition(".")[2] for axis in axes)
        yield Finding(
            "error",
            "dynamic-shape",
            f"{len(bare)} input{'s' if len(bare) > 1 else ''}",
            f"axes vary ({', '.join(shown)}), and TensorRT builds for ranges only"
            + (f": {why.message}" if why else ""),
            (why.hint if why else None)
            or f"Say it: --profile {shell_command([next(iter(shown))])}=MIN:OPT:MAX",
            tuple(bare),
        )
    if dynamic and not bare:
        yield Finding(
            "note",
            "dynamic-shape",
            f"{len(profiles)} profile{'s' if len(profiles) > 1 else ''}",
            "built for " + "; and for ".join(_described(view, each) for each in profiles),
            "Say otherwise with --profile AXIS=MIN:OPT:MAX,…",
            tuple(dynamic),
        )


def largest_sizes(view: GraphView, profile: Profile) -> dict[str, int]:
    """Return the largest size that a profile gives each named axis of a graph."""
    return {axis: high for axis, (_, _, high) in _ranges(view, profile).items()}


def _ranges(view: GraphView, profile: Profile) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for value in view.model.graph.input:
        row = profile.get(value.name)
        if row is None:
            continue
        for at, axis in enumerate(_axes(value)):
            if axis.dim_param and at < len(row.max):
                found[axis.dim_param] = (row.min[at], row.opt[at], row.max[at])
    return found


def _described(view: GraphView, profile: Profile) -> str:
    """Return ``batch 1:1:8, sequence 1:128:512``; the ranks of all modules as one."""
    short = {axis.rpartition(".")[2]: sizes for axis, sizes in _ranges(view, profile).items()}
    return ", ".join(f"{axis} {':'.join(map(str, sizes))}" for axis, sizes in short.items())


def _axes(value: onnx.ValueInfoProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    axes: Sequence[onnx.TensorShapeProto.Dimension] = value.type.tensor_type.shape.dim
    return axes


def _is_dynamic(axis: onnx.TensorShapeProto.Dimension) -> bool:
    return not axis.HasField("dim_value")
