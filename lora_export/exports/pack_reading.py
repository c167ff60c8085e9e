"""An adapter of a swappable export, read from its pack and compared with the graph's inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import AdapterError
from lora_export.core.files import resolve_inside
from lora_export.core.modes import SWAPPABLE_GRAPH
from lora_export.core.safetensors_file import read_header
from lora_export.core.tensors import read_all
from lora_export.graph.adapters.swappable_graph import LORA_A, LORA_B, optional_inputs
from lora_export.ondevice.external_data import read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.manifest import Manifest
    from lora_export.core.tensors import FileTensor
    from lora_export.graph.spec.signature import Axis

__all__ = ["open_pack", "read_pack", "require_fit"]

_AGAIN: Final = "Make its pack again: lora-export add EXPORT --replace"


def read_pack(
    export_dir: Path,
    manifest: Manifest,
    name: str,
    inputs: Mapping[str, tuple[Axis, ...]] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return an adapter of a swappable export as values of the graph's inputs; see `open_pack`."""
    tensors = open_pack(export_dir, manifest, name, inputs)
    return {each: read_all(tensor) for each, tensor in tensors.items()}


def open_pack(
    export_dir: Path,
    manifest: Manifest,
    name: str,
    inputs: Mapping[str, tuple[Axis, ...]] | None = None,
) -> dict[str, FileTensor]:
    """Return the tensors of an adapter of a swappable export, unread, by the graph's inputs.

    Args:
        export_dir: The export directory.
        manifest: Its manifest.
        name: The adapter.
        inputs: The axes of the graph's optional inputs, where they are known already.

    Raises:
        AdapterError: There is no such adapter, its pack is for another base, sets an input that
            the graph does not have or in another shape, or holds one half of an update only.
        InputError: The file is missing or damaged.
    """
    record = manifest.adapters.get(name)
    if record is None or record.pack is None:
        msg = f"the export {str(export_dir)!r} has no adapter {name!r} to swap"
        raise AdapterError(msg, hint=f"It has: {', '.join(sorted(manifest.adapters)) or 'none'}.")
    tensors, metadata = read_header(resolve_inside(export_dir, record.pack.safetensors))
    made_for = metadata.get("base_fingerprint", record.pack.base)
    if manifest.base.fingerprint != made_for or manifest.base.fingerprint != record.pack.base:
        msg = (
            f"the pack of {name!r} is for another base than this export: for {made_for[:16]}…, "
            f"not {manifest.base.fingerprint[:16]}…"
        )
        raise AdapterError(msg, hint=_AGAIN)
    if inputs is None:
        graph = read_graph(resolve_inside(export_dir, manifest.graphs[SWAPPABLE_GRAPH].onnx))
        inputs = optional_inputs(graph)
    require_fit(name, {each: tensor.shape for each, tensor in tensors.items()}, inputs)
    return tensors


def require_fit(
    name: str, shapes: Mapping[str, tuple[int, ...]], inputs: Mapping[str, tuple[Axis, ...]]
) -> None:
    """Require of an adapter's values that a swappable graph can take them, and take them together.

    Args:
        name: The adapter's name.
        shapes: The shape of each value, by the name of its input.
        inputs: The axes of the graph's optional inputs; a name stands for any size.

    Raises:
        AdapterError: An input is not there, is of another shape, or one factor of an update is
            missing or of another rank than the other.
    """
    for each, shape in shapes.items():
        axes = inputs.get(each)
        if axes is None:
            msg = f"adapter {name!r} sets {each!r}, which the swappable graph does not have"
            hint = "Export again with this adapter, so that its modules can be swapped."
            raise AdapterError(msg, hint=hint)
        if len(axes) != len(shape) or any(
            isinstance(axis, int) and axis != size for axis, size in zip(axes, shape, strict=True)
        ):
            msg = f"{each!r} of adapter {name!r} is {list(shape)}, the graph reads {list(axes)}"
            raise AdapterError(msg, hint="Is the adapter of this base?")
    for each in shapes:
        for end, other in ((LORA_A, LORA_B), (LORA_B, LORA_A)):
            half = each.removesuffix(end) + other
            if each.endswith(end) and half not in shapes:
                msg = f"adapter {name!r} has {each!r} and not {half!r}"
                raise AdapterError(msg, hint=f"The adapter is damaged. {_AGAIN}")
    sizes: dict[Axis, tuple[int, str]] = {}
    for each, shape in shapes.items():
        for axis, size in zip(inputs[each], shape, strict=True):
            known, where = sizes.setdefault(axis, (size, each))
            if isinstance(axis, str) and known != size:
                msg = f"{axis} of adapter {name!r} is {size} in {each!r} and {known} in {where!r}"
                raise AdapterError(msg, hint=f"The adapter is damaged. {_AGAIN}")
