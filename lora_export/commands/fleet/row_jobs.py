"""The work of each kind of row, done by the functions behind the commands of the same names.

A job finds its inputs as the plan saw them or fails; it writes into the store only, each artifact
whole or not at all; run twice, it makes the same.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.commands.build import merge_and_build
from lora_export.commands.engines import build
from lora_export.commands.fleet.checked_adapters import fitting_adapters
from lora_export.commands.recipe import make_recipe
from lora_export.commands.remove import remove
from lora_export.core.errors import (
    AdapterError,
    CheckpointError,
    InputError,
    LatencyError,
    LoraExportError,
    ParityError,
)
from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import read_manifest, stored_manifest
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.file_owners import files_of_adapter, files_of_base
from lora_export.exports.servable import refusal
from lora_export.exports.verdict import verification_of
from lora_export.fleet.content import CONTENT_FILE, ContentHashes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_export.commands.outcome import Outcome
    from lora_export.core.manifest import Manifest
    from lora_export.core.progress import Progress
    from lora_export.fleet.fleet_plan import Row

__all__ = ["run_job"]

_CODES: Final = {ParityError.exit_code: ParityError, LatencyError.exit_code: LatencyError}


def run_job(row: Row, store: Path, progress: Progress) -> dict[str, Any]:
    """Run a row; return what its result holds besides its status.

    Args:
        row: The row.
        store: The directory of the fleet.
        progress: Told what happens.

    Raises:
        LoraExportError: See the class of the error; a gate that fails is one too.
    """
    _require_inputs(row, store)
    return _JOBS[row.kind](row, store, progress)


def _require_inputs(row: Row, store: Path) -> None:
    """Require that what the row reads is what the plan saw."""
    hashes = _hashes(store / CONTENT_FILE)
    for text, content in row.inputs.items():
        path = Path(text)
        if not path.exists():
            msg = f"{text!r} does not exist any more"
            raise InputError(msg, hint="Make the plan again: lora-export fleet plan")
        if hashes.of(path) != content:
            msg = f"{text!r} has changed since the plan was made"
            raise InputError(msg, hint="Make the plan again: lora-export fleet plan")


@functools.lru_cache(maxsize=1)
def _hashes(file: Path) -> ContentHashes:
    """Return the hashes of a store, which a worker keeps from one row to the next."""
    return ContentHashes(file)


def _export(row: Row, store: Path, progress: Progress) -> dict[str, Any]:
    """Export the base and verify it; a graph that adapters share is made for all that fit it."""
    table = {**row.job["recipe"], "output": str(store / row.artifact)}
    (store / row.artifact).parent.mkdir(parents=True, exist_ok=True)
    make = _shared_export if row.job["shared"] else _merged_export
    outcome, notes = make(table, row.job["adapters"], progress)
    if (code := outcome.exit_code()) in _CODES:
        raise _CODES[code](_reason(outcome, BASE_GRAPH, strict=False), hint="See its log.")
    return {**_written(outcome.manifest, store, row, None), "notes": [*outcome.notes, *notes]}


def _shared_export(
    table: dict[str, Any], lines: Sequence[dict[str, Any]], progress: Progress
) -> tuple[Outcome, list[str]]:
    """Make a graph for all adapters that fit the base; the rows of the others say why not."""
    kept, left_out = fitting_adapters(table["base"], lines, progress)
    if lines and not kept:
        name, error = next(iter(left_out.items()))
        msg = f"none of the {len(lines)} adapters fits the base; {name}: {error.message}"
        raise AdapterError(msg, hint=error.hint)
    recipe = make_recipe({**table, "adapters": kept}, folder=Path())
    outcome = merge_and_build(recipe, progress, judged="base")
    return outcome, [f"{name} is left out: {error.message}" for name, error in left_out.items()]


def _merged_export(
    table: dict[str, Any], lines: Sequence[dict[str, Any]], progress: Progress
) -> tuple[Outcome, list[str]]:
    """Export the base alone; one without a head with the first adapter that brings it one."""
    try:
        return merge_and_build(make_recipe(table, folder=Path()), progress, judged="base"), []
    except CheckpointError:
        for line in fitting_adapters(table["base"], lines, progress)[0]:
            with contextlib.suppress(LoraExportError):  # its own row says what is wrong with it
                recipe = make_recipe({**table, "adapters": [line]}, folder=Path())
                return merge_and_build(recipe, progress, judged="base"), []
        raise


def _adapter(row: Row, store: Path, progress: Progress) -> dict[str, Any]:
    """Add an adapter, verify it, and measure it where there is a gate.

    The export is of this base: its row has the content of the base in its key.
    """
    name = str(row.adapter)
    table = {**row.job["recipe"], "output": str(store / row.artifact)}
    strict = bool(row.job["strict"])
    try:
        recipe = make_recipe(table, folder=Path())
        base = stored_manifest(store / row.artifact).base.fingerprint
        outcome = merge_and_build(
            recipe, progress, strict=strict, judged="adapters", base_fingerprint=base
        )
    except LoraExportError:
        _withdraw(store / row.artifact, name, progress)
        raise
    files = _written(outcome.manifest, store, row, name)
    found = {
        **files,
        "notes": list(outcome.notes),
        "verdict": verification_of(outcome.manifest, name),
        "measures": {**files["measures"], **_measures(outcome, name)},
    }
    if (code := outcome.exit_code(strict=strict)) in _CODES:
        _withdraw(outcome.output, name, progress)
        hint = "It is not in the export. Its log has the figures."
        raise _CODES[code](_reason(outcome, name, strict=strict), hint=hint)
    return found


def _withdraw(export_dir: Path, name: str, progress: Progress) -> None:
    """Remove an adapter that failed, or its earlier version: only what passed is deployed."""
    if name in read_manifest(export_dir).adapters:
        remove(export_dir, name, progress=progress)


def _engine(row: Row, store: Path, progress: Progress) -> dict[str, Any]:
    """Build the engines of graphs with TensorRT for RTX."""
    from lora_export.engines.engine_options import EngineOptions, library_for

    root, target = store / row.artifact, str(row.target)
    options = EngineOptions(library=library_for(target, None))
    built = build(root, target, graphs=row.job["graphs"], options=options, progress=progress)
    plans = [each["plan"] for each in built]
    return {
        "files": {f"{row.artifact}/{each['file']}": each["sha256"] for each in plans},
        "measures": {"bytes": float(sum(each["bytes"] for each in plans))},
    }


def _bundle(row: Row, store: Path, progress: Progress) -> dict[str, Any]:
    """Pack a bundle of the adapters that passed."""
    from lora_export.bundle.device_bundle import bundle_export

    root = store / "exports" / row.base / row.variant
    manifest = read_manifest(root)
    names = [name for name in row.job["adapters"] if name in manifest.adapters]
    if row.job["adapters"] and not names:
        msg = f"no adapter of {row.base}/{row.variant} passed: there is nothing to bundle"
        raise ParityError(msg, hint="See the rows of its adapters.")
    path = store / row.artifact
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = bundle_export(
        root, str(row.target), path, adapters=names, replace=True, progress=progress
    )
    return {
        "files": {row.artifact: sha256_of_file(path)},
        "measures": {"bytes": float(packed.size_bytes)},
    }


def _triton(row: Row, store: Path, progress: Progress) -> dict[str, Any]:
    """Serve the adapters that passed: their models are written, or changed while they are served.

    Where none has passed, the models of this export leave the repository.
    """
    from lora_export.commands.fleet.spec import TritonDeployment
    from lora_export.triton.refresh_repository import refresh_repository, remove_models

    root, asked = store / row.artifact, TritonDeployment.model_validate(row.job["settings"])
    repository, stem = Path(asked.repository), str(row.job["name"])
    served, left_out = _servable(read_manifest(root), row.job["adapters"])
    if row.job["adapters"] and not served:
        remove_models(repository, stem, progress=progress)
        msg = f"no adapter of {row.base}/{row.variant} passed: there is nothing to serve"
        raise ParityError(msg, hint="See the rows of its adapters.")
    files = refresh_repository(
        root, repository, name=stem, adapters=served, settings=asked, progress=progress,
        backend=asked.backend, way=asked.way, text=asked.text, hardlink=asked.hardlink,
    )  # fmt: skip
    return {
        "outside": {str(each): sha256_of_file(each) for each in files},
        "measures": {"bytes": float(sum(each.stat().st_size for each in files))},
        "notes": [f"{name} is left out: {why}" for name, why in left_out.items()],
    }


def _servable(manifest: Manifest, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the adapters of an export that may be served, and why the others may not."""
    refused = {name: refusal(manifest, name) for name in names}
    left_out = {name: why for name, why in refused.items() if why is not None}
    return [name for name in names if name not in left_out], left_out


def _written(manifest: Manifest, store: Path, row: Row, name: str | None) -> dict[str, Any]:
    """Return the files of the base, or of an adapter, with their hashes."""
    own = files_of_base(manifest) if name is None else files_of_adapter(manifest, name)
    files = {f"{row.artifact}/{file}": manifest.files[file] for file in sorted(own)}
    size = sum((store / file).stat().st_size for file in files if (store / file).is_file())
    return {"files": files, "measures": {"bytes": float(size)}}


def _measures(outcome: Outcome, name: str) -> dict[str, float]:
    """Return the figures of an adapter that the fleet's report shows."""
    found: dict[str, float] = {}
    reports = outcome.reports.as_json()
    sources = {
        "relative_l2": ("parity", ("metrics", "relative_l2")),
        "latency_ratio": ("latency", ("ratio",)),
        "gain": ("quantization", ("loss", "gain")),
        "loss": ("quantization", ("loss", "relative_l2")),
    }
    for measure, (report, path) in sources.items():
        value: Any = _row_of(reports.get(report), name)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, (int, float)):
            found[measure] = float(value)
    return found


def _row_of(report: object, name: str) -> dict[str, Any]:
    """Return the row of an adapter in a report, or of its part of a shared graph."""
    graphs = report.get("graphs", {}) if isinstance(report, dict) else {}
    if name in graphs:
        return dict(graphs[name])
    for row in graphs.values():
        own = (row.get("adapters") or {}).get(name)
        if own:
            return dict(own)
    return {}


def _reason(outcome: Outcome, name: str, *, strict: bool) -> str:
    """Return which gate an adapter failed, and why."""
    reports = outcome.reports
    for title, report in (
        ("parity", reports.parity),
        ("quantization", reports.quantization),
        ("latency", reports.latency),
    ):
        if report is None:
            continue
        for graph, shared in report.graphs.items():
            row = getattr(shared, "adapters", {}).get(name, shared)
            if row.verdict == "fail" or (strict and row.verdict in {"ambiguous", "unverified"}):
                what = name if graph == name or row is not shared else graph
                return f"{title} of {what}: {row.verdict}: {row.reason}"
    return f"a gate of {name} failed"


_JOBS: Final[Mapping[str, Callable[[Row, Path, Progress], dict[str, Any]]]] = {
    "export": _export,
    "adapter": _adapter,
    "engine": _engine,
    "bundle": _bundle,
    "triton": _triton,
}
