"""The report written into an export, and its files hashed in the manifest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from lora_export.core.changes import replace_files
from lora_export.core.errors import ExportDirectoryError
from lora_export.core.manifest import edit_manifest
from lora_export.report.facts import read_facts
from lora_export.report.github import annotate
from lora_export.report.markdown import markdown
from lora_export.report.page import page
from lora_export.report.report_files import REPORT_HTML, REPORT_MARKDOWN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lora_export.core.manifest import Manifest

__all__ = ["github_lines", "write_report"]


def write_report(export_dir: Path) -> Manifest:
    """Write ``reports/report.html`` and ``report.md`` of what is known now; return the manifest.

    Raises:
        ExportDirectoryError: It is not an export, or one of its reports is damaged.
        StorageError: The disk refuses.
    """
    with edit_manifest(export_dir) as manifest:
        facts = read_facts(export_dir)
        with _damaged_rows():
            pages = {REPORT_HTML: page(facts), REPORT_MARKDOWN: markdown(facts)}
        contents = {file: text.encode() for file, text in pages.items()}
        return replace_files(export_dir, manifest, manifest, contents)


def github_lines(export_dir: Path) -> list[str]:
    """Return GitHub's annotations for what is not a pass.

    Raises:
        ExportDirectoryError: It is not an export, or one of its reports is damaged.
    """
    with _damaged_rows():
        return annotate(read_facts(export_dir))


@contextlib.contextmanager
def _damaged_rows() -> Iterator[None]:
    """Turn what a row lacks, or has as another type, into one error: it may be a stranger's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError) as error:
        msg = f"a report of the export is damaged: {type(error).__name__}: {error}"
        raise ExportDirectoryError(
            msg, hint="Write it again with: lora-export verify OUT"
        ) from error
