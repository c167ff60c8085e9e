"""Model repositories for the Triton server, written from an export directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_export.core.errors import AdapterError, UsageError
from lora_export.core.files import storage_errors
from lora_export.core.manifest import read_manifest
from lora_export.core.progress import Progress, Silent
from lora_export.ondevice.file_opening import real_path
from lora_export.triton.model_folders import is_placed, is_plain, locked, place_folder
from lora_export.triton.models import Model, ServingChoice, choose, plan_models, require_files_of
from lora_export.triton.protobuf_schema import schema
from lora_export.triton.repository_options import HANDFUL, RepositoryOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_export.core.modes import ServingWord
    from lora_export.triton.repository_options import Backend

__all__ = ["ModelRepository", "write_repository"]

_EXISTS = "Add adapters with: lora-export triton add; or remove the folder while no server uses it."
_LONGEST_NAME = 128  # adapters and -text are appended, a file system takes 255


@dataclass(frozen=True)
class ModelRepository:
    """A model repository that was written.

    Attributes:
        repository: Where it is.
        backend: The backend of its models.
        models: Their names.
        adapters: The adapters that they serve.
        linked_bytes: What is hard-linked to the export, and takes no room of its own where the
            file system has such links.
        own_bytes: What is new on the disk.
        memory_bytes: About what the server will take on the CPU.
        notes: What the user should know.
    """

    repository: Path
    backend: str
    models: tuple[str, ...]
    adapters: tuple[str, ...]
    linked_bytes: int
    own_bytes: int
    memory_bytes: int
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return {
            "repository": str(self.repository),
            "backend": self.backend,
            "models": list(self.models),
            "adapters": list(self.adapters),
            "linked_bytes": self.linked_bytes,
            "own_bytes": self.own_bytes,
            "memory_bytes": self.memory_bytes,
            "notes": list(self.notes),
        }


def write_repository(
    export_dir: Path,
    repository: Path,
    *,
    name: str | None = None,
    backend: Backend | None = None,
    way: ServingWord | None = None,
    adapters: Sequence[str] = (),
    text: bool = False,
    hardlink: bool = False,
    settings: RepositoryOptions | None = None,
    progress: Progress | None = None,
) -> ModelRepository:
    """Write the models of an export into a repository, each whole or not at all.

    Args:
        export_dir: The export directory.
        repository: The repository; made if absent, other models in it are left alone.
        name: What the models' names begin with; the export directory by default.
        backend: The backend; that which fits the export by default.
        way: How the Python backend runs an adapter.
        adapters: The adapters, or ``base``; all by default.
        text: Whether there is an ensemble that takes texts.
        hardlink: Whether files of the export are linked instead of copied. `onnx` opens no graph
            whose weights are hard links, and a change of one file is a change of both.
        settings: The settings of the models.
        progress: Told what happens, and before anything is written what it will take.

    Raises:
        LoraExportError: See the class of the error; no model is half there.
    """
    schema()
    tell = progress or Silent()
    settings = settings or RepositoryOptions()
    if isinstance(settings.versions, tuple) and set(settings.versions) != {1}:
        msg = f"versions {list(settings.versions)} do not include version 1, which is written"
        raise UsageError(msg, hint="Give --versions 1, the newest, or all.")
    manifest = read_manifest(export_dir)
    choice = choose(
        manifest, _model_name(name or real_path(export_dir).name), backend=backend, way=way,
        adapters=adapters, text=text,
    )  # fmt: skip
    tell.start("checking the export")
    require_files_of(export_dir, manifest)
    models = plan_models(export_dir, manifest, choice, settings)
    written = _described(repository, choice, models, hardlink=hardlink)
    linked = (
        f", {written.linked_bytes:,} more hard-linked to the export where the file system allows"
        if hardlink
        else ""
    )
    tell.note(
        f"{written.own_bytes:,} bytes on disk{linked}; about {written.memory_bytes:,} bytes of "
        "memory in the server"
    )
    for note in written.notes:
        tell.note(f"note: {note}")
    models = _still_to_write(repository, models)
    with storage_errors(str(repository)):
        repository.mkdir(parents=True, exist_ok=True)
    with locked(repository):
        for each in models:
            tell.start(f"writing {each.name}")
            place_folder(repository, each.name, each.all_files, hint=_EXISTS, hardlink=hardlink)
    return written


def _still_to_write(repository: Path, models: Sequence[Model]) -> list[Model]:
    """Return the models that are not there yet: those that a run which was cut short left out."""
    there = [each for each in models if os.path.lexists(repository / each.name)]
    for each in there:
        folder = repository / each.name
        if len(there) == len(models) or not is_placed(folder, each.all_files):
            msg = f"{str(folder)!r} is there already"
            raise AdapterError(msg, hint=_EXISTS)
    return [each for each in models if each not in there]


def _described(
    repository: Path, choice: ServingChoice, models: Sequence[Model], *, hardlink: bool
) -> ModelRepository:
    files = [file for each in models for file in each.all_files]
    linked = sum(file.nbytes for file in files if hardlink and file.source is not None)
    own = sum(file.nbytes for file in files) - linked
    notes = []
    if choice.backend == "onnxruntime" and len(choice.adapters) > HANDFUL:
        notes.append(
            f"{len(choice.adapters)} merged adapters are as many models, each with a base of its "
            "own in memory; --backend python serves them from one, loading what is asked for"
        )
    where = str(real_path(repository))
    if (choice.backend == "python" or choice.text) and not is_plain(where):
        notes.append(
            f"Triton starts a Python model through a shell, which takes {where!r} apart: serve it "
            "from a path of letters, digits, - and _"
        )
    return ModelRepository(
        repository,
        choice.backend,
        tuple(each.name for each in models),
        choice.adapters,
        linked,
        own,
        sum(each.memory_bytes for each in models),
        tuple(notes),
    )


def _model_name(name: str) -> str:
    """Return `name`, checked as a name of models: Triton takes that of the folder."""
    good = is_plain(name) and "/" not in name and not name.startswith((".", "-"))
    if not good or len(name.encode()) > _LONGEST_NAME:
        msg = f"models cannot be called {name!r}"
        raise UsageError(msg, hint="Give letters, digits, -, _ and full stops: --name NAME")
    return name
