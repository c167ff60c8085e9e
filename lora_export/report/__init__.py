"""The report of an export: ``reports/report.html``, ``report.md`` and GitHub annotations."""
