"""Export directories: one base and any number of adapters, created, extended, reduced."""
