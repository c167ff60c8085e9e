"""Commands as functions that Python code can call, and the modules that they share."""
