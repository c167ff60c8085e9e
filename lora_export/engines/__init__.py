"""TensorRT engines: what stands in the way of one, and how it is built."""
