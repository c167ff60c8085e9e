"""Places where the rows of a fleet run: processes of this machine, tasks of a Ray cluster."""
