"""Layouts: directories of an export that other runtimes open as their documentation says."""
