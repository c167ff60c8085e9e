"""The first and the last lines of a result: the verdict, the report and the next command."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lora_export.core.hub import is_hub_id
from lora_export.core.listing import first_few
from lora_export.core.modes import BASE_GRAPH
from lora_export.exports.adapter_companions import FOLDER
from lora_export.exports.verdict import (
    checked_parts,
    deployable,
    lossy_names,
    verdict_of,
    verification_of,
)
from lora_export.ondevice.file_opening import real_path
from lora_export.ondevice.printable import FinishedLine, shell_command
from lora_export.report.report_files import REPORT_HTML

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.commands.outcome import Outcome
    from lora_export.core.manifest import Manifest

__all__ = ["headline", "next_line", "next_words", "on_device_line", "report_line", "report_of"]

_NAMED: Final = 4
_GENERATED: Final = ("text-generation", "text2text-generation")
"""The tasks whose exports `generate` runs."""


def headline(outcome: Outcome) -> str:
    """Return the export, its verdict with the names it is about, and the limits that failed."""
    manifest = outcome.manifest
    verdict = verdict_of(manifest)
    names = _by_verdict(manifest).get(verdict, ())
    latency = outcome.reports.latency
    timed = latency.graphs.items() if latency is not None else ()
    slow = [name for name, row in timed if row.verdict == "fail"]
    parts = [
        f"{outcome.output}: {verdict} ({_listed(names) if names else 'nothing to deploy yet'})",
        checked_parts(manifest),
        f"quantization loses too much of {_listed(lost)}"
        if (lost := lossy_names(manifest))
        else "",
        f"slower than the limit: {_listed(slow)}" if slow else "",
    ]
    return "; ".join(part for part in parts if part)


def report_of(outcome: Outcome) -> Path | None:
    """Return the page of the report, if it is there."""
    path = outcome.output / REPORT_HTML
    return path if _is_readable(path) else None


def report_line(path: object) -> str:
    """Return the line that names a report."""
    return f"report: {path}"


def next_line(words: Sequence[object]) -> FinishedLine:
    """Return the line with the next command, which can be pasted."""
    return FinishedLine(f"next:   {shell_command(words)}")


def on_device_line(file: str, name: str) -> FinishedLine:
    """Return the line with the command that runs a bundle on its device.

    Args:
        file: The name of the archive.
        name: The directory in it.
    """
    unpack, run = ["tar", "xf", file], ["python3", f"{name}/run.py"]
    return FinishedLine(f"next:   on the device: {shell_command(unpack)} && {shell_command(run)}")


def next_words(outcome: Outcome) -> list[object]:
    """Return the command that helps next: verify, look at a failure, add an adapter, or use it."""
    output, manifest = outcome.output, outcome.manifest
    verdict = verdict_of(manifest)
    if verdict == "unverified":
        return ["lora-export", "verify", output, "--base", _base(manifest, output)]
    if verdict != "pass":
        return ["lora-export", "report", output, "--open"]
    if not manifest.adapters:
        return ["lora-export", "add", output, "--adapter", "PATH_OR_ID"]
    if manifest.base.task in _GENERATED and _is_readable(output / FOLDER / "tokenizer.json"):
        adapter = next(iter(manifest.adapters))
        return ["lora-export", "generate", output, "--adapter", adapter, "--prompt", "Hello"]
    return ["lora-export", "report", output, "--open"]


def _by_verdict(manifest: Manifest) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in deployable(manifest):
        found[verification_of(manifest, name)].append(name)
    for name, graph in manifest.graphs.items():
        if graph.is_shared and graph.verification not in found:
            found[graph.verification].append(name)
    return found


def _listed(names: Sequence[str]) -> str:
    shown = [f"the {name}" if name == BASE_GRAPH else name for name in names]
    return ", ".join(first_few(shown, _NAMED))


def _base(manifest: Manifest, output: Path) -> str:
    """Return the base as a user names it: its hub id, or its path from here where it is there."""
    source = manifest.base.source
    if is_hub_id(source) and source.startswith("hf://"):
        return source
    path = output / source
    if not path.is_dir():
        return "BASE"
    found, here = real_path(path), real_path(Path())
    return str(found.relative_to(here)) if found.is_relative_to(here) else str(found)


def _is_readable(path: Path) -> bool:
    """Whether a file is there; one in a folder that may not be searched is none to point to."""
    try:
        return path.is_file()
    except OSError:
        return False
