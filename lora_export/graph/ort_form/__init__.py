"""The form of a decoder with ONNX Runtime's own operators (``--graph-form ort``)."""
