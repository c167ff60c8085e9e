# A Jetson with JetPack 6 (L4T 36, TensorRT 10.3, Python 3.10): builds the engines of a bundle on
# the device, verifies and measures them. Nothing is installed from a package index: the entry point
# of a bundle needs the standard library, NumPy and the TensorRT of the image.
FROM nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel

# NumPy 1.21.5, the one of Ubuntu 22.04. Debian packages of a base image that moves are not pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-numpy \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 --groups video lora

ENV PYTHONDONTWRITEBYTECODE=1
USER 10001
WORKDIR /work
ENTRYPOINT ["python3"]
