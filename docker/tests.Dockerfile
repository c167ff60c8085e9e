# The tests on a host with an NVIDIA GPU, those of real TensorRT included (`make test-trt`).
FROM nvcr.io/nvidia/tensorrt:26.05-py3

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

COPY . /src
# The extras but `tensorrt`, which comes with the image and is seen through the system's packages.
# requirements-core.lock first: it brings setuptools, which builds the rest.
RUN useradd --create-home --uid 10001 lora \
    && python3 -m venv --system-site-packages /opt/lora-export \
    && /opt/lora-export/bin/pip install --require-hashes --only-binary :all: \
        -r /src/requirements-core.lock \
    && /opt/lora-export/bin/pip install --require-hashes --no-build-isolation \
        -r /src/requirements.lock \
    && /opt/lora-export/bin/pip install --no-deps --no-build-isolation -e /src \
    && chown -R lora:lora /src

ENV PATH=/opt/lora-export/bin:$PATH
USER 10001
WORKDIR /src
CMD ["python", "-m", "pytest", "-m", "tensorrt or gpu", "-ra"]
