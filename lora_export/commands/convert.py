"""``adapter convert``: any adapter that is read, in a format that others read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from lora_export.adapters.combine import drop_matching, scaled
from lora_export.adapters.fit import CONV1D_TYPES, check_fit, header_parameters, prefix_of
from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.formats.packed import pack, require_linear
from lora_export.adapters.formats.peft_write import metadata_of, write_peft
from lora_export.adapters.layout import checkpoint_parameters
from lora_export.adapters.naming import to_checkpoint_names
from lora_export.adapters.resolve import ModelNames, resolve
from lora_export.commands.arguments import as_path
from lora_export.commands.convert_methods import as_lora, own_names, require_rank
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.dtypes import by_name
from lora_export.core.errors import AdapterError, ExportDirectoryError, UnsupportedError, UsageError
from lora_export.core.files import (
    is_vacant,
    publish_file,
    publish_folder,
    staging_folder,
    storage_errors,
    write_synced,
)
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import Mode
from lora_export.core.progress import Progress, Silent
from lora_export.core.safetensors_write import write_tensors
from lora_export.core.tensors import nbytes
from lora_export.exports.integrity_checks import require_usable
from lora_export.exports.outside_adapter import resolve_source
from lora_export.exports.packs import pack_of, require_slots
from lora_export.exports.plan import HEAD_PARAMETERS
from lora_export.exports.stored_adapters import mode_of
from lora_export.exports.values import without_copies
from lora_export.ondevice.file_opening import real_path
from lora_export.runtime.adapter_file import SUFFIX, write_onnx_adapter
from lora_export.weights.base_match import record_base
from lora_export.weights.checkpoint import open_checkpoint
from lora_export.weights.residual import require_residual_base

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter
    from lora_export.core.tensors import MemoryTensor

__all__ = ["FORMATS", "AdapterFormat", "Converted", "convert"]

AdapterFormat = Literal["peft", "onnx_adapter", "edge-llm"]


@dataclass(frozen=True)
class Converted:
    """An adapter that was written in another format.

    Attributes:
        source: Where it was read.
        format: The format that it had.
        to: The format that it was written in.
        files: The files.
        modules: How many low-rank updates are in them.
        saved: How many whole parameters.
        dtype: What they are stored in; None where each tensor kept its own.
        losses: Of an adapter of another method than LoRA: ‖ΔW − B A‖ / ‖ΔW‖ of each weight.
    """

    source: str
    format: str
    to: str
    files: tuple[str, ...]
    modules: int
    saved: int
    dtype: str | None
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def worst_loss(self) -> tuple[str, float] | None:
        """The weight that loses most, and how much; None where none was approximated."""
        return max(self.losses.items(), key=lambda row: row[1], default=None)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    to: AdapterFormat,
    base: str | Path | None = None,
    export: str | Path | None = None,
    dtype: str | None = None,
    scale: float = 1.0,
    as_rank: int | None = None,
    adapter_format: str | None = None,
    drop: Sequence[str] = (),
    progress: Progress | None = None,
) -> Converted:
    """Convert the adapter at `source`; `output` appears complete or not at all.

    Args:
        source: The adapter.
        output: The folder (``peft``, ``edge-llm``) or file (``onnx_adapter``), not there yet.
        to: One of `FORMATS`.
        base: The base checkpoint: names and shapes are compared with it first, and its fingerprint
            is recorded in what is written. Without it, what the adapter records is kept.
        export: A swappable export, of whose graph an ``onnx_adapter`` sets the inputs: as `add`
            makes the pack, and for its base. The graph decides about names and dtype.
        dtype: What packed formats store; ``peft`` keeps the adapter's own.
        scale: Multiplies the updates.
        as_rank: The rank of the low-rank updates that are made of an adapter of another method, or
            of whole tensors; it needs `base`.
        adapter_format: The adapter's format, where it is not to be detected.
        drop: Patterns of tensors that are left out.
        progress: Told about reading the base.

    Raises:
        UsageError: An unknown format, a dtype for one that keeps the adapter's, or no base where
            the adapter's initialisation changed it.
        AdapterError: The adapter is damaged, or does not fit `base` or `export`.
        ExportDirectoryError: Something is at `output` already, or `export` is not an export.
        UnsupportedError: The format cannot hold what the adapter has.
    """
    source, output = Path(source), Path(output)
    base, export = as_path(base), as_path(export)
    if to not in _WRITERS:
        msg = f"unknown format {to!r}"
        raise UsageError(msg, hint=f"Known: {', '.join(FORMATS)}.")
    write, default_dtype = _WRITERS[to]
    if dtype is not None and default_dtype is None:
        msg = f"--dtype does not apply to --to {to}, which keeps the adapter's dtype"
        raise UsageError(msg, hint="Leave --dtype out.")
    if export is not None:
        _require_for_export(to, base, dtype)
        return _for_export(source, output, export, scale, drop)
    if as_rank is not None and as_rank < 1:
        msg = f"--as-rank is {as_rank}"
        raise UsageError(msg, hint="A rank is at least 1.")
    name = real_path(source).name.lower()
    adapter = read_adapter(source, name=name, source=str(source), format=adapter_format)
    adapter = drop_matching(adapter, drop)
    require_rank(adapter, as_rank, has_base=base is not None)
    conv1d, losses = False, dict[str, float]()
    if base is not None:
        adapter, conv1d, losses = _on_base(adapter, base, as_rank, progress or Silent())
    elif adapter.residual is not None:
        msg = f"adapter {adapter.source!r} has init_lora_weights: {adapter.residual!r}"
        raise UsageError(msg, hint="Give the residual base that it was trained on: --base PATH.")
    adapter = scaled(adapter, scale)
    chosen = by_name(dtype or default_dtype).name if default_dtype else None
    with staging_folder(output.parent, output.name) as staging:
        names = write(staging, adapter, output=output, dtype=chosen, conv1d=conv1d)
        _publish(staging, output, names)
    files = [output.parent / name for name in names] or sorted(output.iterdir())
    return Converted(
        str(source),
        adapter.format,
        to,
        tuple(map(str, files)),
        len(adapter.low_rank),
        len(adapter.saved),
        chosen,
        losses,
    )


def _require_for_export(to: str, base: Path | None, dtype: str | None) -> None:
    """Refuse what does not go with an export: it has a base, a graph and that graph's dtype.

    Raises:
        UsageError: Such a thing is given.
    """
    if to != _PACK:
        msg = f"--export needs --to onnx_adapter, not --to {to}"
        raise UsageError(msg, hint=f"Leave --export out, or choose --to {_PACK}.")
    for option, value in (("--base", base), ("--dtype", dtype)):
        if value is not None:
            msg = f"{option} {str(value)!r} does not apply with --export, which determines it"
            raise UsageError(msg, hint=f"Leave {option} out.")


def _for_export(
    source: Path, output: Path, export: Path, scale: float, drop: Sequence[str]
) -> Converted:
    """Write the pack that `add` would write, beside the export."""
    manifest = read_manifest(export)
    if mode_of(manifest) is not Mode.SWAPPABLE:
        msg = f"the export {str(export)!r} has no swappable graph"
        raise UnsupportedError(msg, hint="Export it with --mode swappable.")
    require_usable(export, manifest)
    given = AdapterSpec(source=str(source), scale=scale, drop=list(drop))
    resolved = without_copies(export, resolve_source(export, manifest, _ANY_NAME, given))
    require_slots(export, manifest, [resolved])
    tensors, metadata = pack_of(export, manifest, resolved)
    metadata["name"] = output.stem
    with staging_folder(output.parent, output.name) as staging:
        names = _write_pack(staging, output, tensors, metadata, manifest.base.fingerprint)
        _publish(staging, output, names)
    return Converted(
        str(source),
        resolved.adapter.format,
        _PACK,
        tuple(str(output.parent / name) for name in names),
        len(resolved.adapter.low_rank),
        len(resolved.adapter.saved),
        manifest.base.dtype,
    )


def _on_base(
    adapter: Adapter, base: Path, rank: int | None, tell: Progress
) -> tuple[Adapter, bool, dict[str, float]]:
    """Require that the adapter fits the base; return it with that base recorded.

    An adapter of another method becomes one of LoRA. The second value says whether the base's
    layers are ``Conv1D``, the third what each weight loses.
    """
    checkpoint = open_checkpoint(base)
    model_type = str(checkpoint.config["model_type"])
    parameters = header_parameters(checkpoint.tensors)
    prefix = prefix_of(model_type, parameters, adapter)
    stored = to_checkpoint_names(adapter, ModelNames(parameters, prefix), config=checkpoint.config)
    fit = check_fit(
        stored, parameters, prefix=prefix, model_type=model_type, resizable=HEAD_PARAMETERS
    )
    if not fit.fits:
        msg = f"adapter {adapter.source!r} does not fit {str(base)!r}: {fit.mismatches[0]}"
        raise AdapterError(msg, hint="See all of it with: lora-export inspect BASE ADAPTER")
    if adapter.residual is not None:
        rows = checkpoint_parameters(
            checkpoint.tensors, checkpoint.config, adapter, prefix=prefix, head_dtype="float32"
        )
        resolved = resolve(adapter, rows, prefix=prefix, resizable=HEAD_PARAMETERS)
        require_residual_base(resolved, checkpoint.tensors, str(base))
    tell.start("hashing the base", sum(map(nbytes, checkpoint.stored.values())))
    changed = [parameter.name for parameter in fit.changed]
    known = record_base(checkpoint, changed, tell.advance)
    losses: dict[str, float] = {}
    if adapter.computed or rank is not None:
        own = own_names(adapter, stored)
        adapter, losses = as_lora(stored, own, checkpoint, prefix=prefix, rank=rank, tell=tell)
    return replace(adapter, known_base=known), model_type in CONV1D_TYPES, losses


def _publish(staging: Path, output: Path, names: Sequence[str]) -> None:
    """Move what was written into place: the folder itself, or the files in it.

    Raises:
        ExportDirectoryError: Something is there already.
    """
    if not names:
        if not is_vacant(output):
            raise _exists(output)
        publish_folder(staging, output)
        return
    targets = [output.parent / name for name in names]
    for target in targets:
        if os.path.lexists(target):
            raise _exists(target)
    for name, target in zip(names, targets, strict=True):
        publish_file(staging / name, target)


def _exists(target: Path) -> ExportDirectoryError:
    msg = f"{str(target)!r} exists already"
    return ExportDirectoryError(msg, hint="Choose another --out; nothing was changed.")


def _write_peft(folder: Path, adapter: Adapter, *, conv1d: bool, **_: Any) -> tuple[str, ...]:
    write_peft(adapter, folder, conv1d=conv1d)
    return ()


def _write_onnx_adapter(
    folder: Path, adapter: Adapter, *, output: Path, dtype: str, **_: Any
) -> tuple[str, ...]:
    """Write the pack under the adapter's own names."""
    tensors = pack(adapter, by_name(dtype))
    fingerprint = adapter.known_base.fingerprint if adapter.known_base else None
    return _write_pack(folder, output, tensors, metadata_of(adapter), fingerprint)


def _write_pack(
    folder: Path,
    output: Path,
    tensors: Mapping[str, MemoryTensor],
    metadata: Mapping[str, str],
    fingerprint: str | None,
) -> tuple[str, ...]:
    """Write a pack, and beside it the same tensors as safetensors."""
    if output.suffix != SUFFIX:
        msg = f"{str(output)!r} does not end in {SUFFIX}"
        raise UsageError(msg, hint=f"Name a file: --out NAME{SUFFIX}")
    plain = output.with_suffix(".safetensors").name
    write_tensors(folder / plain, tensors, metadata)
    with storage_errors(str(output)):
        write_onnx_adapter(folder / output.name, tensors, fingerprint)
    return plain, output.name


def _write_edge_llm(folder: Path, adapter: Adapter, *, dtype: str, **_: Any) -> tuple[str, ...]:
    """Write ``adapter_model.safetensors`` and a ``config.json`` whose scale is 1: it is in B.

    Layout and names are those of its ``process-lora``; that it takes float16 and these two file
    names is an assumption, not tried on a device.
    """
    require_linear(adapter)
    tensors = pack(adapter, by_name(dtype))
    write_tensors(folder / "adapter_model.safetensors", tensors, metadata_of(adapter))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base_name,
        "r": adapter.max_rank,
        "lora_alpha": adapter.max_rank,
        "target_modules": sorted({u.module.rpartition(".")[2] for u in adapter.low_rank}),
    }
    write_synced(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
    return ()


_PACK: Final = "onnx_adapter"
_ANY_NAME: Final = "adapter"
"""What the adapter is called while it is read; nothing that is written says so."""

_WRITERS: Final[dict[str, tuple[Callable[..., tuple[str, ...]], str | None]]] = {
    "peft": (_write_peft, None),
    _PACK: (_write_onnx_adapter, "float32"),
    "edge-llm": (_write_edge_llm, "float16"),
}
"""Each format: its writer, which returns the files to move or none for the folder, its dtype."""

FORMATS: Final = tuple(_WRITERS)
