"""``inspect``: what a checkpoint, an adapter or an export holds, from headers alone."""
