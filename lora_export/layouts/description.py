"""Values that describe a directory for a runtime: its graphs and files; nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_export.core.graph_forms import DEFAULT_FORM, GraphForm
from lora_export.core.modes import BASE_GRAPH, SWAPPABLE_GRAPH, Mode
from lora_export.exports.stored_adapters import form_of, mode_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.graph.spec.external_values import SideBySide
    from lora_export.weights.companion_files import Content

__all__ = ["ExportKind", "Layout", "PlacedGraph", "Subject", "kind_of"]


@dataclass(frozen=True)
class ExportKind:
    """The properties of an export that decide whether a runtime can take it.

    They are known before an export is built, so that a recipe is refused early.

    Attributes:
        model_type: The model's type in transformers.
        task: The task.
        mode: How adapters are held.
        cache: Whether keys and values of past positions are inputs and outputs.
        cache_length: The positions of a static cache; None for one that grows.
        form: The form of its graphs.
    """

    model_type: str
    task: str
    mode: Mode
    cache: bool = False
    cache_length: int | None = None
    form: GraphForm = DEFAULT_FORM


def kind_of(manifest: Manifest) -> ExportKind:
    """Return the kind of an export."""
    base = manifest.base
    return ExportKind(
        base.model_type,
        base.task,
        mode_of(manifest),
        base.cache,
        base.cache_length,
        form_of(manifest),
    )


@dataclass(frozen=True)
class Subject:
    """The content of one directory: an adapter of an export, its base, or its swappable graph.

    Attributes:
        export_dir: The export directory.
        manifest: Its manifest.
        name: An adapter; ``base``; or ``swappable``, with the packs of all adapters.
    """

    export_dir: Path
    manifest: Manifest
    name: str

    @property
    def adapter(self) -> str | None:
        """The adapter; None for the base and for all packs."""
        return self.name if self.name in self.manifest.adapters else None

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters that the directory holds."""
        if self.name == SWAPPABLE_GRAPH:
            return tuple(self.manifest.adapters)
        return () if self.name == BASE_GRAPH else (self.name,)


@dataclass(frozen=True)
class PlacedGraph:
    """A graph of a directory, and the file that all of its values go to.

    Attributes:
        path: The graph's file, relative to the directory.
        data: The name of the file with its values, which lies beside it.
        onnx_bytes: The graph; it names files of the export, relative to its directory.
        packed: What initializers are made of that no file of the export has as they are, by name.
    """

    path: str
    data: str
    onnx_bytes: bytes = field(repr=False)
    packed: Mapping[str, SideBySide] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Layout:
    """A directory that a runtime opens.

    Attributes:
        adapters: The adapters in it; none for the base.
        graphs: Its graphs.
        files: Further files by their paths: copies of files of the export, or contents.
        notes: What the user should know.
    """

    adapters: tuple[str, ...]
    graphs: tuple[PlacedGraph, ...]
    files: Mapping[str, Content] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
