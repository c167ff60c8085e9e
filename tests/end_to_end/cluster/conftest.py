"""A Ray cluster of two nodes and a server of S3, both on loopback.

They are there in the environment that ``make test-ray`` makes, in a network namespace of its own:
Ray listens on all interfaces.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.servers import mark_below

if TYPE_CHECKING:
    from collections.abc import Iterator

QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "2",
}
"""Settings with which a dead node is noticed after two seconds in place of fourteen."""

NODE = {"num_cpus": 2, "memory": 4 << 30, "object_store_memory": 80 << 20}
"""The processors and the memory of each node of the cluster."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    there = all(importlib.util.find_spec(name) for name in ("ray", "moto", "s3fs"))
    alone = os.environ.get("LORA_EXPORT_LOOPBACK") == "1"
    absent = None if there and alone else "needs Ray, moto and a network of its own: make test-ray"
    mark_below(Path(__file__).parent, items, "cluster", absent=absent)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start a cluster of two nodes; yield it."""
    scratch = tmp_path_factory.mktemp("scratch")  # the workers', which get this environment
    os.environ.update(
        {
            **QUICK,
            "LORA_EXPORT_SCRATCH": str(scratch),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
        }
    )
    from ray.cluster_utils import Cluster

    found = Cluster(
        initialize_head=True,
        head_node_args={
            **NODE,
            "include_dashboard": False,
            "resources": {"target:here": 1, "target:rtx": 1},
        },
    )
    found.add_node(**NODE)
    yield found
    found.shutdown()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a server of S3 with an empty bucket called ``fleet``; yield the server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    place = f"http://{host}:{port}"
    reset = urllib.request.Request(f"{place}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    for name, value in {
        "AWS_ENDPOINT_URL": place,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="fleet")
    yield server
    server.stop()
