"""Fleets: many builds as one plan of rows, run side by side and resumed where they stopped."""
