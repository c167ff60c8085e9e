"""``report``: the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from lora_export.cli.console import Console, common_options
from lora_export.core.errors import StorageError, UsageError
from lora_export.core.files import open_output
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file, real_path

__all__ = ["report"]

_SUMMARY: Final = "GITHUB_STEP_SUMMARY"


@click.command("report")
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--github", is_flag=True,
              help="Print GitHub annotations; add the report to the step's summary.")  # fmt: skip
@click.option("--open", "opened", is_flag=True, help="Show the page in a browser.")
@common_options
def report(*, export: Path, github: bool, opened: bool, as_json: bool, quiet: bool) -> int:
    """Write what is known of EXPORT as one page: reports/report.html and report.md.

    merge-and-build and verify do so by themselves, add and remove keep it true. With --github,
    everything that is not a pass becomes a ::error or ::warning line on stdout.
    """
    from lora_export.report.write_report import (
        REPORT_HTML,
        REPORT_MARKDOWN,
        github_lines,
        write_report,
    )

    if github and as_json:
        msg = "--github and --json both print on stdout"
        raise UsageError(msg, hint="Choose one of them.")
    with Console(as_json=as_json, quiet=quiet) as console:
        write_report(export)
        files = {"html": export / REPORT_HTML, "markdown": export / REPORT_MARKDOWN}
        lines = github_lines(export) if github else [str(path) for path in files.values()]
        if github and (summary := os.environ.get(_SUMMARY)):
            _append(Path(summary), read_file(files["markdown"], TABLE_LIMIT_BYTES).decode())
        document = {key: str(path) for key, path in files.items()}
        if lines or as_json:
            console.finish(document, lines)
        if opened:
            click.launch(str(real_path(files["html"])))
    return 0


def _append(summary: Path, text: str) -> None:
    try:
        with open_output(summary, append=True) as stream:
            stream.write(text.encode())
    except OSError as error:
        msg = f"cannot write the summary {str(summary)!r}: {error.strerror}"
        raise StorageError(msg, hint=f"Check ${_SUMMARY}, or leave --github out.") from error
