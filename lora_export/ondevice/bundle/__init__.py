"""A bundle on its device: its index, what it is run with, its report."""
