"""The graphs of an export on one execution provider: checked, opened, shared where they can be."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lora_export.core.errors import ExportDirectoryError, UsageError
from lora_export.core.files import resolve_inside
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import SWAPPABLE_GRAPH
from lora_export.exports.create import BASE_WEIGHTS
from lora_export.exports.integrity_checks import require_files
from lora_export.runtime.ort import CPU, OrtRunner
from lora_export.runtime.swappable import SwappableGraph

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from lora_export.core.manifest import Manifest

__all__ = ["ExportGraphs"]

Shared = TypeVar("Shared")


@dataclass
class ExportGraphs:
    """The graphs of an export.

    Attributes:
        export_dir: The export directory, whose base graph and weights were checked.
        manifest: Its manifest.
        provider: The execution provider, by its full name.
        threads: Threads within an operator; 0 leaves the choice to ONNX Runtime.
        check_hashes: Whether the SHA-256 of a weight file is compared before it is used.
    """

    export_dir: Path
    manifest: Manifest
    provider: str
    threads: int
    check_hashes: bool
    _sessions: dict[str, OrtRunner] = field(default_factory=dict, init=False, repr=False)
    _swappable: dict[str, SwappableGraph] = field(default_factory=dict, init=False, repr=False)
    _closed: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @property
    def on_cpu(self) -> bool:
        """Whether weights are read where the file is mapped."""
        return self.provider == CPU

    def open(
        self, name: str, initializers: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> OrtRunner:
        """Open a session of the graph `name`.

        Args:
            name: The graph.
            initializers: Values in place of those in its weight files.

        Raises:
            LoraExportError: A file is damaged, or ONNX Runtime cannot open the graph.
        """
        return OrtRunner(
            self._checked(name),
            provider=self.provider,
            threads=self.threads,
            initializers=initializers,
        )

    def shared(self, name: str) -> OrtRunner:
        """Return the one session of a graph that all adapters share."""
        return self._once(self._sessions, name, lambda: self.open(name))

    def swappable(self) -> SwappableGraph:
        """Return the one session of the swappable graph."""
        return self._once(
            self._swappable,
            SWAPPABLE_GRAPH,
            lambda: SwappableGraph(
                self._checked(SWAPPABLE_GRAPH), provider=self.provider, threads=self.threads
            ),
        )

    def close(self) -> None:
        """Close the shared sessions; none is opened any more."""
        with self._lock:
            self._closed = True
            self._sessions.clear()
            self._swappable.clear()

    def require(self, files: Iterable[str], *, hashed: bool) -> None:
        """Require of files that they are those of the manifest; see `require_files`.

        Raises:
            ExportDirectoryError: One is damaged, or the export was changed since it was opened.
        """
        try:
            require_files(self.export_dir, self.manifest, files, hashed=hashed)
        except ExportDirectoryError as error:
            if read_manifest(self.export_dir).files == self.manifest.files:
                raise
            export = str(self.export_dir)
            msg = f"the export {export!r} was changed since it was opened: {error.message}"
            raise ExportDirectoryError(msg, hint="Open the export again.") from error

    def _once(self, held: dict[str, Shared], name: str, opened: Callable[[], Shared]) -> Shared:
        with self._lock:
            if self._closed:
                msg = "the session is closed"
                raise UsageError(msg, hint="Open the export again.")
            if name not in held:
                held[name] = opened()
            return held[name]

    def _checked(self, name: str) -> Path:
        """Return the path of a graph whose hash, and whose own weight files, are right."""
        record = self.manifest.graphs[name]
        own = [file for file in record.weights if file != BASE_WEIGHTS]
        self.require([record.onnx], hashed=True)
        self.require(own, hashed=self.check_hashes)
        return resolve_inside(self.export_dir, record.onnx)
