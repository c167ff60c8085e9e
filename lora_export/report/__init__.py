"""What is known of an export on one page: ``reports/report.html``, ``report.md``, annotations."""
