"""The store of a fleet: artifacts by key, in a directory or behind any URL that fsspec opens."""
