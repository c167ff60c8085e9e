"""The reports of an export as validated values: ``reports/parity.json`` and its neighbours."""
