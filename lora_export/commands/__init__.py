"""Commands as functions: one module for each, and the modules that they share."""
