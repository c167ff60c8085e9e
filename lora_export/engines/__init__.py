"""TensorRT engines on the host: preflight checks, profiles, builds, refits."""
