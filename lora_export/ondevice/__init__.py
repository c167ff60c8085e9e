"""Code that runs on a device: the standard library, NumPy 1.21 and TensorRT, on Python 3.10.

Nothing here imports the rest of the package, so that the folder can be copied to a Jetson as it is;
the rest of the package uses it for everything that touches TensorRT.
"""
