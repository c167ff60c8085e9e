"""ONNX Runtime, on a device or on the host: sessions opened and run, its errors translated."""
