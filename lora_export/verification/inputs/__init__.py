"""What graphs are fed with when they are compared and timed."""
