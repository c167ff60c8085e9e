"""Model repositories for the Triton server, written from an export and changed while it runs."""
