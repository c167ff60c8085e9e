"""``report``: the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import common_options
from lora_export.core.errors import StorageError, UsageError
from lora_export.core.files import open_output
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file, real_path

__all__ = ["report"]

_SUMMARY: Final = "GITHUB_STEP_SUMMARY"


@click.command(
    "report",
    cls=Command,
    examples="""
lora-export report out --open

# In a GitHub workflow
lora-export report out --github
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--open", "opened", section="Output", is_flag=True, help="Open the page in a browser.")
@option("--github", section="Output", is_flag=True,
        help="Print GitHub annotations, and add the report to the summary of the "
             "step.")  # fmt: skip
@common_options
def report(*, export: Path, github: bool, opened: bool, as_json: bool, quiet: bool) -> int:
    """Write the report of an export: reports/report.html and reports/report.md.

    merge-and-build, verify, add and remove write it too. With --github, everything
    that is not a pass becomes a ::error or ::warning line on stdout.
    """
    from lora_export.report.report_files import REPORT_HTML, REPORT_MARKDOWN
    from lora_export.report.write_report import github_lines, write_report

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
