"""``fleet``: many bases, adapters, variants and targets as one plan, run and reported."""
