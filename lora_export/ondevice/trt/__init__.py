"""TensorRT: engines built, recorded, opened, run and refitted."""
