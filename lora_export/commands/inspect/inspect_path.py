"""The reports of `inspect` on local paths: on one, or on a base and an adapter together.

Nothing here needs torch unless the weights are a pickle of PyTorch. Of an adapter the factors are
read, to find updates of zero; of a base no tensor is, unless hashes are asked for. A report is a
frozen value; `dataclasses.asdict` makes JSON of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Final

from lora_export.adapters.base_name import note_on_base
from lora_export.adapters.fit import check_fit, header_parameters, prefix_of
from lora_export.adapters.formats.detect import is_adapter, read_adapter
from lora_export.adapters.naming import to_checkpoint_names, to_model_names
from lora_export.adapters.resolve import ModelNames
from lora_export.adapters.unread_layers import note_on_unread
from lora_export.commands.adapter_notes import base_of_export, opened_base
from lora_export.commands.inspect.describe_adapter import AdapterReport, adapter_report
from lora_export.commands.inspect.describe_checkpoint import CheckpointReport, checkpoint_report
from lora_export.commands.inspect.describe_export import (
    ExportReport,
    export_report,
    present_parameters,
)
from lora_export.core.errors import InputError, UsageError
from lora_export.core.folders import folders_below, list_names
from lora_export.core.gguf_file import read_gguf_metadata
from lora_export.core.manifest import MANIFEST_NAME, is_export, read_manifest
from lora_export.core.progress import Progress, Silent
from lora_export.exports.plan import HEAD_PARAMETERS
from lora_export.ondevice.file_opening import reason_of
from lora_export.ondevice.printable import shell_command
from lora_export.weights.base_match import header_differences, value_differences
from lora_export.weights.checkpoint import open_checkpoint, read_config
from lora_export.weights.gguf.gguf_parts import gguf_file_of, holds_gguf_base
from lora_export.weights.named_base import note_on_named_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter
    from lora_export.adapters.fit import Fit
    from lora_export.adapters.known_base import KnownBase
    from lora_export.core.json_file import JsonObject

__all__ = ["FIT_LABEL", "FitReport", "PairReport", "Reading", "inspect_pair", "inspect_path"]

FIT_LABEL: Final = "by names and shapes (headers only; not a proof)"
_KNOWN: Final = (
    "A checkpoint folder holds config.json, a PEFT adapter adapter_config.json, an export "
    "lora_export.json."
)


@dataclass(frozen=True)
class Reading:
    """Settings for reading an adapter that its files do not record.

    Attributes:
        format: Its format.
        alpha: The alpha that it was trained with.
        enable_lora: Which blocks a ``MergedLinear`` of loralib adapts.
    """

    format: str | None = None
    alpha: float | None = None
    enable_lora: Sequence[bool] | None = None


_AS_FOUND: Final = Reading()


@dataclass(frozen=True)
class FitReport:
    """Whether an adapter fits a base, and how much of it that is.

    `trained_share` is the adapter's parameters over the base's; `changed_share` the part of the
    base's parameters that a merge changes, which is what a merged graph stores anew. `recorded`
    says how the base compares with the one that the adapter records; None where it records none.
    `note` says that the adapter names another base, where both names are known; `vocabulary` how it
    changes the number of tokens, where it does; `unread` which updates PEFT ignores unmerged.
    """

    fits: bool
    how: str
    prefix: str
    matched: int
    tensors: int
    replaced: tuple[str, ...]
    brought: tuple[str, ...]
    mismatches: tuple[str, ...]
    trained_share: float
    changed_share: float
    changed_bytes: int
    recorded: str | None = None
    note: str | None = None
    vocabulary: str | None = None
    unread: str | None = None


@dataclass(frozen=True)
class PairReport:
    """A base, an adapter, and whether they fit."""

    kind: str
    base: CheckpointReport | ExportReport
    adapter: AdapterReport
    fit: FitReport


def inspect_path(
    path: Path,
    *,
    hashed: bool = False,
    progress: Progress | None = None,
    reading: Reading = _AS_FOUND,
) -> CheckpointReport | AdapterReport | ExportReport:
    """Describe what is at `path`.

    Args:
        path: A checkpoint, an adapter or an export directory.
        hashed: Whether to read everything: an export's files are compared with their SHA-256, a
            checkpoint's fingerprint is computed.
        progress: Told about hashing.
        reading: How an adapter is read; anything but the default means that it is one.

    Raises:
        InputError: Nothing is there, nothing of the three kinds, or a file is damaged.
        UnsupportedError: A variant that is not handled, or a newer format.
    """
    tell = progress or Silent()
    if reading == _AS_FOUND and holds_gguf_base(path):
        return checkpoint_report(open_checkpoint(path), hashed=hashed, progress=tell)
    if not _is_adapter_file(path):
        _require_folder(path)
    if is_export(path):
        return export_report(path, read_manifest(path), hashed=hashed, progress=tell)
    if reading != _AS_FOUND or is_adapter(path):
        return adapter_report(_read_adapter(path, reading), path)
    if os.path.lexists(path / "config.json"):
        return checkpoint_report(open_checkpoint(path), hashed=hashed, progress=tell)
    if below := folders_below(path, _is_known):
        msg = (
            f"{str(path)!r} is not a checkpoint, adapter or export, but folders below it are: "
            f"{list_names(below)}"
        )
        words = ["lora-export", "inspect", path / below[-1]]
        raise InputError(msg, hint=f"Choose one: {shell_command(words)}")
    gguf_file_of(path)  # of several it names the files
    msg = f"{str(path)!r} is neither a checkpoint, an adapter nor an export directory"
    raise InputError(msg, hint=_what_is_missing(path))


def _is_known(folder: Path) -> bool:
    names = ("config.json", "adapter_config.json", MANIFEST_NAME)
    return any(os.path.lexists(folder / name) for name in names)


def inspect_pair(
    base: Path,
    adapter: Path,
    *,
    hashed: bool = False,
    progress: Progress | None = None,
    reading: Reading = _AS_FOUND,
) -> PairReport:
    """Describe `base` (a checkpoint or an export) and `adapter`, and whether they fit.

    Raises:
        InputError: One of them is missing or damaged. A mismatch is in the report, not an error.
        UsageError: The two are in the wrong order.
        UnsupportedError: A variant of LoRA that is not handled, or a newer format.
    """
    tell = progress or Silent()
    for path in (base, adapter):
        if not (holds_gguf_base(path) if path is base else _is_adapter_file(path)):
            _require_folder(path)
    if is_adapter(base) and not (base / "config.json").is_file():
        msg = f"{str(base)!r} is an adapter, where a base is expected"
        raise UsageError(msg, hint="The order is: lora-export inspect BASE ADAPTER")
    report: CheckpointReport | ExportReport
    if is_export(base):
        manifest = read_manifest(base)
        read = _read_adapter(adapter, reading, base / "hf")
        model_type, prefix = manifest.base.model_type, manifest.base.prefix
        parameters = present_parameters(manifest)
        stored = to_model_names(
            read,
            ModelNames(parameters, prefix),
            manifest.base.conversions,
            config=_config_in(base / "hf"),
        )
        report = export_report(base, manifest, hashed=hashed, progress=tell)
    else:
        checkpoint = open_checkpoint(base)
        read = _read_adapter(adapter, reading, base)
        model_type = str(checkpoint.config["model_type"])
        parameters = header_parameters(checkpoint.tensors)
        prefix = prefix_of(model_type, parameters, read)
        names = ModelNames(parameters, prefix)
        stored = to_checkpoint_names(read, names, config=checkpoint.config)
        report = checkpoint_report(checkpoint, hashed=hashed, progress=tell)
    fit = check_fit(
        stored, parameters, prefix=prefix, model_type=model_type, resizable=HEAD_PARAMETERS
    )
    described = adapter_report(read, adapter)
    note = _note_on_base(read, base, tell, hashed=hashed)
    found = replace(
        _fit_report(fit, described, report.parameters),
        note=note,
        unread=note_on_unread(read, model_type, [each.name for each in parameters]),
    )
    if read.known_base is not None:
        recorded, differences = _recorded(read.known_base, base, prefix, hashed=hashed)
        found = replace(
            found,
            recorded=recorded,
            fits=found.fits and not differences,
            mismatches=(*found.mismatches, *differences),
        )
    return PairReport("pair", report, described, found)


def _note_on_base(adapter: Adapter, base: Path, tell: Progress, *, hashed: bool) -> str | None:
    """Return a note where the adapter names another base; values are compared where all is read."""
    if is_export(base):
        given = base_of_export(base, read_manifest(base), None)
    else:
        given = opened_base(open_checkpoint(base))
    return note_on_base(adapter, given.hub_id) or note_on_named_folder(
        adapter, given, tell, values=hashed
    )


def _recorded(
    known: KnownBase, base: Path, prefix: str, *, hashed: bool
) -> tuple[str, tuple[str, ...]]:
    """Return how `base` compares with the base that an adapter records, naming what differs."""
    if is_export(base):
        same = read_manifest(base).base.fingerprint == known.fingerprint
        return f"the base's fingerprint is {'the recorded one' if same else 'another'}", ()
    tensors = open_checkpoint(base).stored
    differences = header_differences(known, tensors, prefix)
    if differences:
        return "another base, by its headers", differences
    if not hashed:
        return "the same names, dtypes and shapes; --hash compares the values too", ()
    differences = value_differences(known, tensors, prefix)
    verdict = "another base, by its values" if differences else "the values are the recorded ones"
    return verdict, differences


def _require_folder(path: Path) -> None:
    if not path.exists():
        msg = f"there is nothing at {str(path)!r}"
        raise InputError(
            msg, hint=f"Give a folder, or an id of the hub (ORGANISATION/NAME). {_KNOWN}"
        )
    if not path.is_dir():
        if path.suffix == ".gguf":
            read_gguf_metadata(path)  # says what is wrong with it
        msg = f"{str(path)!r} is a file"
        raise InputError(msg, hint=f"Give the folder that holds it. {_KNOWN}")
    try:
        os.stat(f"{path}/.")  # noqa: PTH116  (a path drops the dot; whether it may be searched)
    except OSError as error:
        msg = f"cannot read {str(path)!r}: {reason_of(error)}"
        raise InputError(msg, hint="Check the permissions of the folder.") from error


def _what_is_missing(path: Path) -> str:
    """Return a hint: which file would make something of this folder."""
    for pattern, lacking in (
        ("adapter_model.*", "adapter_config.json"),
        ("model*.safetensors*", "config.json"),
        ("pytorch_model*.bin*", "config.json"),
    ):
        weights = next(iter(sorted(path.glob(pattern))), None)
        if weights is not None:
            return f"{weights.name} is there, but {lacking} is not: copy it from the source."
    return _KNOWN


def _is_adapter_file(path: Path) -> bool:
    """Whether `path` is a single file that holds an adapter."""
    return path.is_file() and is_adapter(path)


def _read_adapter(path: Path, reading: Reading, base: Path | None = None) -> Adapter:
    """Read the adapter at `path`; `base` is a folder with the base's ``config.json``."""
    config = _config_in(base) if base is not None else None
    return read_adapter(path, name="adapter", source=str(path), base_config=config, **vars(reading))


def _config_in(folder: Path) -> JsonObject | None:
    """Return the ``config.json`` in `folder`; None without one."""
    held = os.path.lexists(folder / "config.json") or holds_gguf_base(folder)
    return read_config(folder) if held else None


def _fit_report(fit: Fit, adapter: AdapterReport, base_parameters: int) -> FitReport:
    changed = sum(prod(parameter.shape) for parameter in fit.changed)
    return FitReport(
        fits=fit.fits,
        how=FIT_LABEL,
        prefix=fit.prefix,
        matched=fit.matched,
        tensors=adapter.tensors,
        replaced=fit.replaced,
        brought=fit.brought,
        mismatches=fit.mismatches,
        trained_share=adapter.parameters / max(base_parameters, 1),
        changed_share=changed / max(base_parameters, 1),
        changed_bytes=sum(prod(p.shape) * p.stored_dtype.itemsize_bytes for p in fit.changed),
        vocabulary=fit.vocabulary.description if fit.vocabulary else None,
    )
