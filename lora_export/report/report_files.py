"""The files of an export's report, for what names them without drawing the page."""

from __future__ import annotations

from typing import Final

__all__ = ["REPORT_HTML", "REPORT_MARKDOWN"]

REPORT_HTML: Final = "reports/report.html"
REPORT_MARKDOWN: Final = "reports/report.md"
