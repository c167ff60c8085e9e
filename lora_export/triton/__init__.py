"""Model repositories for the Triton server, written of an export and changed while it runs."""
