"""The models of an export brought up to date in a repository, which a server may be reading.

absent                            written
as it would be written            left alone
serves adapters by its index      adapters added, replaced and removed while it is served
another                           its folder replaced, by two renames
of an adapter that is gone        its folder removed
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import AdapterError, UnsupportedError, UsageError
from lora_export.core.files import storage_errors
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import Mode
from lora_export.exports.stored_adapters import mode_of
from lora_export.triton.find_models import find_models
from lora_export.triton.live_changes import add_to_repository, remove_from_repository
from lora_export.triton.model_folders import (
    is_copy,
    is_placed,
    locked,
    place_folder,
    remove_folder,
)
from lora_export.triton.models import choose, plan_models, require_files_of
from lora_export.triton.protobuf_schema import schema
from lora_export.triton.python_models import INDEX, read_index_table

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from lora_export.core.manifest import Manifest
    from lora_export.core.modes import ServingWord
    from lora_export.core.progress import Progress
    from lora_export.triton.find_models import RepositoryModel
    from lora_export.triton.models import Model
    from lora_export.triton.repository_options import Backend, RepositoryOptions

__all__ = ["refresh_repository", "remove_models"]

_COMPANIONS: Final = ("text", "cached", "tokenizer")
"""What may follow the name of a model: an ensemble over it, or its tokenizer."""

_HINT: Final = "Run it again."


def refresh_repository(
    export_dir: Path,
    repository: Path,
    *,
    name: str,
    adapters: Sequence[str],
    settings: RepositoryOptions,
    progress: Progress,
    backend: Backend | None = None,
    way: ServingWord | None = None,
    text: bool = False,
    hardlink: bool = False,
) -> tuple[Path, ...]:
    """Make a repository serve these adapters of an export; return the files of their models.

    Args:
        export_dir: The export directory.
        repository: The repository; made if absent, other models in it are left alone.
        name: What the models' names begin with.
        adapters: The adapters that are served; those of its models that are not named go.
        settings: The settings of the models.
        progress: Told what is written.
        backend: The backend; that which fits the export by default.
        way: How the Python backend runs an adapter.
        text: Whether there is an ensemble that takes texts.
        hardlink: Whether files of the export are linked instead of copied.

    Raises:
        LoraExportError: See the class of the error; no model is half there.
    """
    schema()
    manifest = read_manifest(export_dir)
    every = set(adapters) == set(manifest.adapters)
    if not every and mode_of(manifest) is Mode.BATCHED:
        backend = backend or "python"  # by itself, a batched graph has the rows of all
    choice = choose(
        manifest, name, backend=backend, way=way, adapters=() if every else adapters, text=text
    )
    require_files_of(export_dir, manifest)
    planned = plan_models(export_dir, manifest, choice, settings)
    with storage_errors(str(repository)):
        repository.mkdir(parents=True, exist_ok=True)
    held = {each.name: each for each in find_models(repository)}
    remove_models(repository, name, kept={each.name for each in planned}, progress=progress)
    for each in planned:
        folder = repository / each.name
        if folder.is_dir() and is_placed(folder, each.all_files):
            continue
        changed = _changed_live(export_dir, repository, manifest, held.get(each.name), adapters)
        if changed and _is_current(folder, each):
            progress.note(f"{each.name} serves {len(adapters)} adapters now")
            continue
        progress.start(f"writing {each.name}")
        with locked(repository):
            place_folder(
                repository, each.name, each.all_files, hint=_HINT, hardlink=hardlink, replace=True
            )
    return _files(repository, planned)


def remove_models(
    repository: Path, name: str, *, kept: Collection[str] = (), progress: Progress
) -> None:
    """Remove the models whose names begin with `name`, and what comes with them.

    Args:
        repository: The repository.
        name: What the models' names begin with, as ``--name`` gave it.
        kept: Names of models that stay.
        progress: Told what is removed.

    Raises:
        StorageError: The disk refuses.
    """
    if not repository.is_dir():
        return
    own = [each for each in find_models(repository) if each.stem == name]
    stems = {name, *(each.name for each in own)}
    around = [f"{stem}-{part}" for stem in stems for part in _COMPANIONS]
    gone = [each for each in (*around, *(each.name for each in own)) if each not in kept]
    with locked(repository):
        for each in dict.fromkeys(gone):  # ensembles first: they need the model
            if (repository / each).is_dir():
                progress.note(f"removing {each}")
                remove_folder(repository, repository / each)


def _changed_live(
    export_dir: Path,
    repository: Path,
    manifest: Manifest,
    model: RepositoryModel | None,
    adapters: Sequence[str],
) -> bool:
    """Change the adapters of a model while it is served; return whether that could be done."""
    if model is None or not model.serves_adapters:
        return False
    if model.fingerprint != manifest.base.fingerprint:
        return False
    try:
        held = set(read_index_table(model.version)["adapters"])
        for gone in sorted(held - set(adapters)):
            remove_from_repository(repository, gone, name=model.name)
        add_to_repository(export_dir, repository, adapters, name=model.name, replace=True)
    except (AdapterError, UnsupportedError, UsageError):
        return False  # another graph, width or setting: it is written anew
    return True


def _is_current(folder: Path, model: Model) -> bool:
    """Return whether a model has its settings, code and weights; its index is its own."""
    others = (file for file in model.all_files if not file.path.endswith(f"/{INDEX}"))
    return all(is_copy(folder / file.path, file) for file in others)


def _files(repository: Path, planned: Sequence[Model]) -> tuple[Path, ...]:
    """Return the files of models that are there, as they are named when they are written."""
    found = (repository / each.name / file.path for each in planned for file in each.all_files)
    return tuple(sorted(path for path in found if path.is_file()))
