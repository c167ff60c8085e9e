"""An export made ready for where it runs."""
