"""``lora_export.json``: what an export directory holds; written last, under a lock."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from lora_export.core.adapter_names import check_adapter_name
from lora_export.core.base_record import BaseRecord, GraphSource
from lora_export.core.combined_record import CombinedRecord
from lora_export.core.errors import ExportDirectoryError, StorageError, UnsupportedError
from lora_export.core.files import (
    atomic_write_bytes,
    exclusive_lock,
    remove_abandoned,
    require_inside,
)
from lora_export.core.graph_forms import GraphForm
from lora_export.core.journal import finish, is_committed
from lora_export.core.model_json import model_json
from lora_export.core.modes import BASE_GRAPH, SHARED_MODES, Mode
from lora_export.core.quantization_record import QuantizationRecord, QuantizedRecord
from lora_export.core.record_values import RECORD_CONFIG, Sha256
from lora_export.ondevice.file_opening import read_file, reason_of
from lora_export.ondevice.file_writing import require_plain, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

__all__ = [
    "MANIFEST_NAME",
    "PLAIN_VERSION",
    "QUANTIZED_VERSION",
    "REPORTS_FOLDER",
    "AdapterRecord",
    "BaseRecord",
    "CompanionsRecord",
    "GraphFile",
    "GraphRecord",
    "GraphSource",
    "Manifest",
    "PackRecord",
    "ParameterUse",
    "QuantizationRecord",
    "QuantizedRecord",
    "RowRecord",
    "edit_manifest",
    "is_export",
    "manifest_bytes",
    "read_manifest",
    "stored_manifest",
    "write_manifest",
]

MANIFEST_NAME: Final = "lora_export.json"
REPORTS_FOLDER: Final = "reports/"
"""Files below this are about the export, and not of it."""
PLAIN_VERSION: Final = 1
QUANTIZED_VERSION: Final = 2
_LOCK: Final = ".lora_export.lock"
_LIMIT_BYTES: Final = 1 << 28

Verification = Literal["pass", "fail", "ambiguous", "unverified"]
Loss = Literal["pass", "fail", "ambiguous", "ungated"]


class _Record(BaseModel):
    model_config = RECORD_CONFIG


class ParameterUse(_Record):
    """One parameter of the checkpoint as one graph stores it.

    Of a quantized one `initializer` is the parameter's name, below which its integers and scales
    lie; `shape` is that of its values, and `dtype` that of the scales and of what is computed.
    """

    graph: str
    initializer: str
    transform: list[str]
    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    module: str
    aliases: list[str] = []
    quantized: QuantizedRecord | None = None


class GraphFile(_Record):
    """One ``.onnx`` file."""

    onnx: str
    sha256: Sha256


class GraphRecord(_Record):
    """One graph, and what is known about it.

    `missing` names the parameters that neither base nor adapter has: they are zeros, and the graph
    cannot be deployed. Of an encoder-decoder `onnx` is the decoder, and `encoder` a second graph
    over the same weights. `loss` is the verdict on quantization; `form` is None where portable.
    """

    mode: Mode
    onnx: str
    weights: list[str]
    opset: int
    sha256: Sha256
    verification: Verification = "unverified"
    loss: Loss | None = None
    missing: list[str] = []
    golden: str | None = None
    encoder: GraphFile | None = None
    form: GraphForm | None = None

    @property
    def graph_files(self) -> dict[str, str]:
        """The SHA-256 of each ``.onnx`` file."""
        further = {} if self.encoder is None else {self.encoder.onnx: self.encoder.sha256}
        return {self.onnx: self.sha256, **further}

    @property
    def is_shared(self) -> bool:
        """Whether it is one graph for all adapters."""
        return self.mode in SHARED_MODES


class CompanionsRecord(_Record):
    """The files that come with an adapter besides its tensors (``exports/adapter_companions.py``).

    Attributes:
        files: Files below ``hf/<adapter>/``, which hold in place of those in ``hf/``.
        hidden: Files in ``hf/`` that do not hold for the adapter.
        taken: What this is, in words: ``tokenizer``, ``chat template``, or names of files.
    """

    files: list[str] = []
    hidden: list[str] = []
    taken: list[str] = []


class PackRecord(_Record):
    """An adapter as values of the inputs of a swappable graph; see ``exports/packs.py``.

    Attributes:
        safetensors: The values.
        onnx_adapter: The same in ONNX Runtime's format.
        base: The fingerprint of the base that they are for.
        verification: What is known of the graph with these values.
        loss: The verdict on what quantization cost, where the graph is quantized.
        golden: Inputs and expected outputs.
    """

    safetensors: str
    onnx_adapter: str
    base: Sha256
    verification: Verification = "unverified"
    loss: Loss | None = None
    golden: str | None = None


class RowRecord(_Record):
    """An adapter as a row of the stacks of a batched graph; see ``exports/stacks.py``.

    Attributes:
        row: Its number, what ``adapter_ids`` says.
        verification: What is known of the graph with this row.
        loss: The verdict on what quantization cost, where the graph is quantized.
        golden: Inputs and expected outputs.
    """

    row: int = Field(ge=1)
    verification: Verification = "unverified"
    loss: Loss | None = None
    golden: str | None = None


class ApproximationRecord(_Record):
    """An adapter of another method, held as LoRA.

    Attributes:
        method: Its method.
        rank: The largest rank of an update (``as_rank``).
        losses: ‖ΔW − B A‖ / ‖ΔW‖ of each weight, by its name in the adapter.
    """

    method: str
    rank: int = Field(ge=1)
    losses: dict[str, float]


class AdapterRecord(_Record):
    """One adapter, and how completely it was applied.

    `scale` is what its updates were multiplied by, where that is not 1; `alpha` and `enable_lora`
    are what the user said of it; `vocab_size` is its number of tokens, where that is not the
    base's; `combined` says what it was made of, and `source` then names the parts. `companions` is
    None where the adapter has those of the base. `notes` are what the user was told of it, such as
    that it names another base. `approximation` says how it is held as LoRA, where it is none.
    """

    source: str
    format: str
    rank: int
    scale: float | None = None
    alpha: float | None = None
    enable_lora: list[bool] | None = None
    combined: CombinedRecord | None = None
    merged_from: Literal["checkpoint", "export"]
    tensors_total: int
    tensors_applied: int
    dropped: list[str] = []
    missing_in_base: list[str]
    labels: list[str] | None = None
    vocab_size: int | None = Field(default=None, ge=1)
    sha256: Sha256
    pack: PackRecord | None = None
    row: RowRecord | None = None
    companions: CompanionsRecord | None = None
    notes: list[str] = []
    approximation: ApproximationRecord | None = None


class Manifest(_Record):
    """The whole of ``lora_export.json``; every file is hashed in `files`."""

    format_version: int = Field(default=PLAIN_VERSION, ge=1, le=QUANTIZED_VERSION)
    tool: str
    base: BaseRecord
    parameters: dict[str, list[ParameterUse]]
    graphs: dict[str, GraphRecord]
    adapters: dict[str, AdapterRecord]
    files: dict[str, Sha256]

    @property
    def base_graph(self) -> GraphRecord:
        """The graph without an adapter."""
        return self.graphs[BASE_GRAPH]

    @property
    def rows(self) -> dict[str, int]:
        """The row of each adapter in the stacks of a batched graph."""
        return {name: each.row.row for name, each in self.adapters.items() if each.row is not None}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        uses = [use for each in self.parameters.values() for use in each]
        quantized = any(use.quantized for use in uses)
        if self.format_version == PLAIN_VERSION and (quantized or self.base_graph.form):
            new = "parameters are quantized" if quantized else "graphs have a form"
            msg = f"{new}, which format_version 1 does not have"
            raise ValueError(msg)
        unknown = {use.graph for use in uses} - set(self.graphs)
        if unknown:
            msg = f"a parameter is of the graph {min(unknown)!r}, which is not listed"
            raise ValueError(msg)
        return self

    @field_validator("graphs")
    @classmethod
    def _has_base(cls, graphs: dict[str, GraphRecord]) -> dict[str, GraphRecord]:
        if BASE_GRAPH not in graphs:
            msg = "the base graph is missing"
            raise ValueError(msg)
        return graphs


def is_export(folder: Path) -> bool:
    """Whether `folder` holds a manifest, readable or not."""
    return os.path.lexists(folder / MANIFEST_NAME)


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest of an export directory, whose files are then in their places.

    A change whose process was killed is finished first; see `lora_export.core.journal`.

    Raises:
        ExportDirectoryError: There is none, it is damaged, or a path in it leads outside.
        StorageError: A change cannot be finished: the disk refuses.
        UnsupportedError: It was written by a newer version.
    """
    manifest = stored_manifest(folder)
    if is_committed(folder, manifest.files):
        try:
            with edit_manifest(folder) as manifest:
                pass
        except StorageError as error:
            msg = f"a change of {str(folder)!r} that was cut short is not finished: {error.message}"
            raise StorageError(msg, hint="Run again where it can be written.") from error
    return manifest


def stored_manifest(folder: Path) -> Manifest:
    """Return the manifest as it stands, though files of it may wait; see `read_manifest`."""
    path = folder / MANIFEST_NAME
    try:
        data = read_file(path, _LIMIT_BYTES)
    except OSError as error:
        msg = f"{str(folder)!r} is not an export directory: {MANIFEST_NAME}: {reason_of(error)}"
        raise ExportDirectoryError(
            msg, hint="Make one with: lora-export merge-and-build"
        ) from error
    newer = re.search(rb'"format_version":\s*(\d{1,9})', data)
    if newer and int(newer[1]) > QUANTIZED_VERSION:
        has = f"{str(path)!r} has format_version {int(newer[1])}"
        msg = f"{has}; this version reads {QUANTIZED_VERSION}"
        raise UnsupportedError(msg, hint="Upgrade lora-export.")
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        msg = f"{str(path)!r} is damaged: {where}: {first['msg']}"
        raise ExportDirectoryError(msg, hint="Export again.") from error
    _check_paths(folder, manifest)
    return manifest


def _check_paths(folder: Path, manifest: Manifest) -> None:
    """Require that no path in the manifest leads out of the directory."""
    named: set[str] = set(manifest.files)
    for graph in manifest.graphs.values():
        named |= {*graph.graph_files, *graph.weights, graph.golden or MANIFEST_NAME}
    for name, adapter in manifest.adapters.items():
        check_adapter_name(name)
        if pack := adapter.pack:
            named |= {pack.safetensors, pack.onnx_adapter, pack.golden or MANIFEST_NAME}
        for file in adapter.companions.files if adapter.companions else ():
            named.add(f"hf/{name}/{file}")
        if adapter.row and adapter.row.golden:
            named.add(adapter.row.golden)
    require_inside(folder, sorted(named))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, complete or not at all."""
    atomic_write_bytes(folder / MANIFEST_NAME, manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the contents of ``lora_export.json``."""
    return model_json(manifest, exclude_none=True)


@contextlib.contextmanager
def edit_manifest(folder: Path) -> Iterator[Manifest]:
    """Hold the directory's lock and yield the manifest as it is now.

    The caller writes its successor before the block ends, with `write_manifest`, or together with
    files by `lora_export.core.changes`; two processes that do so at once follow one another. What a
    killed process has left is finished or removed first.

    Raises:
        ExportDirectoryError: There is no export, or its manifest is damaged.
        StorageError: The manifest is a link, which is read but not replaced: that is known before
            anything is built.
    """
    stored_manifest(folder)  # nothing is created in a folder that is not an export
    with storage_errors(str(folder / MANIFEST_NAME)):
        require_plain(folder / MANIFEST_NAME)
    with exclusive_lock(folder / _LOCK):
        remove_abandoned(folder)
        manifest = stored_manifest(folder)
        finish(folder, manifest.files)
        yield manifest
