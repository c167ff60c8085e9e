# A host with an NVIDIA GPU and TensorRT 10.16: builds engines, runs and refits them.
FROM nvcr.io/nvidia/tensorrt:26.05-py3

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1

COPY . /src
# TensorRT comes with the image: the extra `tensorrt` would put a second copy beside it. A venv,
# because the system's Python is not ours to change; it sees the image's TensorRT. pip checks the
# hash of everything that it downloads, setuptools included, with which the project is built.
RUN python3 -m venv --system-site-packages /opt/lora-export \
    && /opt/lora-export/bin/pip install --require-hashes --only-binary :all: \
        -r /src/requirements-core.lock \
    && /opt/lora-export/bin/pip install --no-deps --no-build-isolation /src \
    && useradd --create-home --uid 10001 lora

ENV PATH=/opt/lora-export/bin:$PATH
USER 10001
WORKDIR /work
ENTRYPOINT ["lora-export"]
CMD ["doctor"]
