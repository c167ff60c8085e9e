"""Bases in GGUF: files, types, architectures, and the config that metadata stands for."""
