"""Adapters added to and removed from a repository that a server may be reading.

A model of the Python backend looks at its index with every batch: files are put there first, the
index is renamed into place, and what it no longer names is deleted last. Where every adapter is a
model, its folder is renamed into the repository, or out of it. A batched graph that a backend runs
by itself gets a new version.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import AdapterError, StorageError, UnsupportedError, UsageError
from lora_export.core.manifest import Manifest, read_manifest
from lora_export.core.modes import Mode, ServingMode
from lora_export.exports.servable import require_servable
from lora_export.exports.stored_adapters import mode_of
from lora_export.ondevice.file_opening import real_path
from lora_export.ondevice.printable import shell_command
from lora_export.triton.find_models import (
    RepositoryModel,
    find_models,
    is_cached,
    the_only,
    versions_of,
)
from lora_export.triton.model_config import ADAPTER
from lora_export.triton.model_folders import File, locked, place_file, place_folder, remove_folder
from lora_export.triton.models import ServingChoice, plan_models, require_files_of
from lora_export.triton.orphaned_files import remove_orphans
from lora_export.triton.protobuf_schema import CONFIG_NAME, config_text
from lora_export.triton.python_models import (
    INDEX,
    index_file,
    interface_of,
    read_index_table,
    serve,
)
from lora_export.triton.repository_options import RepositoryOptions
from lora_export.triton.serving.index import BadIndexError
from lora_export.triton.serving_modes import SERVING, serve_adapter
from lora_export.triton.text_inputs import require_known_texts

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from lora_export.triton.models import Model
    from lora_export.triton.serving_table import AdapterLine, ServingTable

__all__ = ["RepositoryChange", "add_to_repository", "remove_from_repository"]

_AGAIN: Final = "Write the repository again: lora-export triton EXPORT --repository DIR"
_KEPT: Final = 2
"""Versions of a batched graph that stay: the new one, and the one that requests may be running."""


@dataclass(frozen=True)
class RepositoryChange:
    """The result of a change.

    Attributes:
        model: The model's name, or what the models' names begin with.
        models: Models that are new or gone; a server in explicit mode has to be told of them.
        adapters: The adapters that are served now.
        reload: Whether those models have to be loaded; a model of the Python backend sees the
            change by itself.
    """

    model: str
    models: tuple[str, ...]
    adapters: tuple[str, ...]
    reload: bool


def add_to_repository(
    export_dir: Path,
    repository: Path,
    names: Sequence[str],
    *,
    name: str | None = None,
    replace: bool = False,
) -> RepositoryChange:
    """Serve further adapters of an export.

    Args:
        export_dir: The export, which holds the adapters already.
        repository: The repository.
        names: The adapters.
        name: Which models, where the repository has several of the base.
        replace: Whether adapters of the same names may be replaced.

    Raises:
        LoraExportError: See the class of the error; the repository is as it was.
    """
    manifest = read_manifest(export_dir)
    for each in names:
        require_servable(manifest, each)
    with locked(repository):
        found = the_only(find_models(repository, manifest.base.fingerprint), name, repository)
        first = found[0]
        if first.serves_adapters or first.is_batched_graph:
            _require_inside(repository, first)
        if first.serves_adapters:  # and has the base: its weights are not read again
            require_files_of(export_dir, manifest, names=names, base_weights=False)
            require_known_texts(export_dir, manifest, repository, first.stem, names)
            return _add_lines(export_dir, manifest, repository, first, names, replace=replace)
        require_files_of(export_dir, manifest)
        if first.is_batched_graph:
            require_known_texts(export_dir, manifest, repository, first.name, list(manifest.rows))
            return _add_version(export_dir, manifest, repository, first)
        for each in names:
            _require_new(first.stem, {one.adapter for one in found}, each, replace=replace)
        for each in names:
            _add_model(export_dir, manifest, repository, first, each)
        now = sorted({each.adapter for each in found} | set(names))
        added = tuple(f"{first.stem}-{each}" for each in names)
        return RepositoryChange(first.stem, added, tuple(now), reload=True)


def remove_from_repository(
    repository: Path, gone: str, *, name: str | None = None
) -> RepositoryChange:
    """Serve an adapter no longer.

    Args:
        repository: The repository.
        gone: The adapter.
        name: Which models, where the repository has several.

    Raises:
        AdapterError: No model serves it.
        UnsupportedError: The model knows adapters by their rows only.
        StorageError: The disk refuses.
    """
    with locked(repository):
        every = find_models(repository)
        found = the_only(every, name, repository)
        first = found[0]
        if first.is_batched_graph:
            msg = f"{gone!r} is a row of the batched graph {first.name!r}, which is removed whole"
            raise UnsupportedError(
                msg, hint="Remove it from the export, then: lora-export triton add EXPORT"
            )
        if first.serves_adapters:
            _require_inside(repository, first)
            return _remove_line(repository, first, gone)
        held = {each.adapter: each for each in found}
        _require_held(gone, held)
        own = held.pop(gone)
        around = {f"{own.name}-{part}" for part in ("text", "cached", "tokenizer")}
        models = [*(each for each in every if each.name in around and not each.adapter), own]
        for each in models:  # ensembles first: they need the model
            remove_folder(repository, each.folder)
        names = tuple(each.name for each in models)
        return RepositoryChange(first.stem, names, tuple(sorted(held)), reload=True)


# -------------------------------------------------------------------------- the Python backend


def _add_lines(
    export_dir: Path,
    manifest: Manifest,
    repository: Path,
    model: RepositoryModel,
    names: Sequence[str],
    *,
    replace: bool,
) -> RepositoryChange:
    if not names:
        msg = "no adapter is named"
        raise UsageError(msg, hint="lora-export triton add EXPORT NAME --repository DIR")
    table = _table(model)
    held = table["adapters"]
    way = ServingMode(table["way"])
    kept = [each for each in held if each not in names]
    if SERVING[way].rows:  # every change of the stacks is another graph
        lost = sorted(set(kept) - set(manifest.rows))
        if lost:
            msg = f"the export no longer holds {lost[0]!r}, which the repository serves"
            raise AdapterError(
                msg, hint=f"First: lora-export triton remove {shell_command(lost[:1])}"
            )
        updated, files = serve(export_dir, manifest, way, [*kept, *names])
        _refuse_others(model, held, updated["adapters"], kept)
    else:
        updated, files = {**table, "adapters": dict(held)}, []
        shared, _ = serve(export_dir, manifest, way, ())
        if shared["graph"] != table["graph"]:
            msg = f"the graph of {str(export_dir)!r} is not the one that {model.name!r} serves"
            raise AdapterError(msg, hint=_AGAIN)
        for each in names:
            line, own = serve_adapter(export_dir, manifest, way, each)
            updated["adapters"][each] = line
            files += own
    if table.get("retired"):
        updated["retired"] = table["retired"]
    cached = is_cached(repository, model)
    for each in names:
        _refuse_stale(model, table, updated, each, replace=replace, cached=cached)
    _require_room(export_dir, manifest, model, updated, names)
    for file in {each.path: each for each in files}.values():
        if not (model.version / file.path).exists():
            place_file(repository, model.version, file)
    place_file(repository, model.version, index_file(updated))
    remove_orphans((model.version / INDEX).parent)
    return RepositoryChange(model.name, (), tuple(sorted(updated["adapters"])), reload=False)


def _remove_line(repository: Path, model: RepositoryModel, gone: str) -> RepositoryChange:
    table = _table(model)
    _require_held(gone, table["adapters"])
    line = table["adapters"].pop(gone)
    if is_cached(repository, model):
        table["retired"] = sorted({*table.get("retired", []), f"{gone} {_content(line)}"})
    place_file(repository, model.version, index_file(table))
    remove_orphans((model.version / INDEX).parent)
    return RepositoryChange(model.name, (), tuple(sorted(table["adapters"])), reload=False)


def _refuse_stale(
    model: RepositoryModel,
    table: ServingTable,
    updated: ServingTable,
    name: str,
    *,
    replace: bool,
    cached: bool,
) -> None:
    """Refuse what would be answered wrongly: another adapter of a name that is known."""
    before, now = table["adapters"].get(name), updated["adapters"][name]
    if before is not None and not replace:
        msg = f"the model {model.name!r} serves an adapter {name!r} already"
        raise AdapterError(msg, hint="Choose another name, or replace it: --replace")
    past = {each.split(" ")[0]: each.split(" ", 1)[1] for each in table.get("retired", [])}
    changed = before is not None and before != now
    if cached and (changed or past.get(name, _content(now)) != _content(now)):
        msg = f"the response cache may still answer for the earlier adapter {name!r}"
        raise UnsupportedError(
            msg, hint="Choose another name, or write the repository again and restart the server."
        )


def _content(line: AdapterLine) -> str:
    """Return a value that identifies the contents of an adapter."""
    return str(line.get("identity") or line["file"])


def _refuse_others(
    model: RepositoryModel,
    held: Mapping[str, AdapterLine],
    updated: Mapping[str, AdapterLine],
    kept: Sequence[str],
) -> None:
    """Refuse to change what nobody named: stacks hold every adapter as the export has it now."""
    for each in kept:
        if _content(held[each]) != _content(updated[each]):
            msg = f"{each!r} of the export is another adapter than {model.name!r} serves"
            raise AdapterError(msg, hint=f"Replace it at once: triton add … {each} --replace")


def _require_room(
    export_dir: Path,
    manifest: Manifest,
    model: RepositoryModel,
    updated: ServingTable,
    names: Sequence[str],
) -> None:
    """Require that the configuration, which stays, fits the new adapters."""
    text = model.config.parameters["cache_bytes"].string_value
    limit = int(text) if text.isascii() and text.isdigit() else 0
    largest = max(updated["adapters"][each]["nbytes"] for each in names)
    if largest > limit:
        msg = f"an adapter takes {largest} bytes, the model's cache_bytes is {limit}"
        raise UsageError(msg, hint=_AGAIN)
    interface = interface_of(export_dir, manifest, ServingMode(updated["way"]), names)
    for each, declared in zip(interface.outputs, model.config.output, strict=True):
        own = each.dims[1:]
        if any(size not in {-1, wanted} for size, wanted in zip(declared.dims, own, strict=True)):
            msg = (
                f"{each.name!r} is {list(own)} with the new adapter, the model's configuration "
                f"says {list(declared.dims)}"
            )
            raise UnsupportedError(msg, hint=_AGAIN)


def _table(model: RepositoryModel) -> ServingTable:
    try:
        return read_index_table(model.version)
    except (BadIndexError, OSError) as error:
        msg = f"the index of {model.name!r} is damaged: {error}"
        raise AdapterError(msg, hint=_AGAIN) from error


def _require_inside(repository: Path, model: RepositoryModel) -> None:
    """Refuse to change files that lie elsewhere: a folder on the way may be a link."""
    for folder in (model.folder, model.version, (model.version / INDEX).parent):
        below = folder.relative_to(repository)
        if folder.is_dir() and real_path(folder) != real_path(repository) / below:
            msg = f"{str(folder)!r} is a link that leads out of the repository"
            raise AdapterError(msg, hint="Only folders in the repository itself are changed.")


def _require_held(name: str, held: Any) -> None:
    if name not in held:
        msg = f"no model of the repository serves an adapter {name!r}"
        raise AdapterError(msg, hint=f"There are: {', '.join(sorted(held)) or 'none'}.")


# ------------------------------------------------------------------------- a model per adapter


def _require_new(stem: str, held: Collection[str], adapter: str, *, replace: bool) -> None:
    if adapter in held:
        what = "cannot be replaced while a server may be reading it" if replace else "is there"
        msg = f"the model {stem}-{adapter} {what}"
        raise AdapterError(msg, hint=f"First: lora-export triton remove {shell_command([adapter])}")


def _add_model(
    export_dir: Path, manifest: Manifest, repository: Path, sibling: RepositoryModel, adapter: str
) -> None:
    """Add a model like its sibling, and its ensemble where that has one."""
    warm = bool(sibling.config.model_warmup)
    text = (repository / f"{sibling.name}-text").is_dir()
    cached = is_cached(repository, sibling)
    choice = ServingChoice(
        sibling.stem, sibling.config.backend, ServingMode.MERGED, (adapter,), text
    )
    settings = RepositoryOptions(warmup=warm, response_cache=cached)
    for model in plan_models(export_dir, manifest, choice, settings):
        if text and model.name == f"{sibling.stem}-tokenizer" and _is_there(repository, model):
            continue
        config = model.config
        if ADAPTER in config.parameters:  # the graph; not its tokenizer or an ensemble
            config = _like(sibling.config, model.config)
        config.max_batch_size = min(model.config.max_batch_size, sibling.config.max_batch_size)
        files = [*model.files, File(CONFIG_NAME, data=config_text(config))]
        place_folder(repository, model.name, files, hint=_AGAIN)


def _is_there(repository: Path, model: Model) -> bool:
    return (repository / model.name / CONFIG_NAME).is_file()


def _like(sibling: Any, config: Any) -> Any:
    """Return the settings of `sibling` with the graph of `config`."""
    other = type(config)()
    other.CopyFrom(sibling)
    other.name = config.name
    for key in ("input", "output", "model_warmup"):
        other.ClearField(key)
        getattr(other, key).extend(getattr(config, key))
    other.ClearField("cc_model_filenames")
    other.cc_model_filenames.update(config.cc_model_filenames)
    for key, value in config.parameters.items():
        other.parameters[key].CopyFrom(value)
    return other


def _add_version(
    export_dir: Path, manifest: Manifest, repository: Path, model: RepositoryModel
) -> RepositoryChange:
    """Give a batched graph that a backend runs by itself another version."""
    if mode_of(manifest) is not Mode.BATCHED:
        msg = f"{str(export_dir)!r} has no batched graph, which {model.name!r} is of"
        raise AdapterError(msg, hint=_AGAIN)
    if model.config.version_policy.HasField("specific"):
        msg = f"the model {model.name!r} serves a fixed list of versions, which has no new one"
        raise UnsupportedError(msg, hint="Write it with --versions 1, the newest.")
    if is_cached(repository, model):
        msg = f"the response cache may still answer for the earlier rows of {model.name!r}"
        raise UnsupportedError(msg, hint="Write the repository again and restart the server.")
    choice = ServingChoice(model.name, model.config.backend, ServingMode.BATCHED, ())
    (planned,) = plan_models(export_dir, manifest, choice, RepositoryOptions(warmup=False))
    declared = [list(each.dims) for each in model.config.output]
    if declared != [list(each.dims) for each in planned.config.output]:
        msg = f"the outputs of {model.name!r} would have another width"
        raise UnsupportedError(msg, hint=_AGAIN)
    number = int(model.version.name) + 1
    files = [
        File(each.path.removeprefix("1/"), each.source, each.data)
        for each in planned.files
        if each.path.startswith("1/")
    ]
    place_folder(repository, f"{model.name}/{number}", files, hint=_AGAIN)
    for old in versions_of(model.folder)[:-_KEPT]:
        with contextlib.suppress(StorageError):  # the new version is there
            remove_folder(repository, old)
    return RepositoryChange(model.name, (model.name,), tuple(sorted(manifest.rows)), reload=True)
