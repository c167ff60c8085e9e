"""The inputs that graphs get when they are compared and timed."""
