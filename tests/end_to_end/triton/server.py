"""The real Triton server on free loopback ports, over a model repository."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Server", "serving"]

START_SECONDS = 60


@dataclass
class Server:
    """A server; `start` it, `stop` it, start it again on the same ports.

    Attributes:
        home: What ``tools/fetch_triton.py`` made.
        repository: The model repository.
        log: Where it writes.
        options: Further options.
        python: The folder of the interpreter that models run in.
    """

    home: Path
    repository: Path
    log: Path
    options: Sequence[str] = ()
    http_port: int = 0
    grpc_port: int = 0
    metrics_port: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    python: Path | None = None

    def start(self) -> None:
        """Start it and wait until all models are ready."""
        if not self.http_port:
            self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        home = self.home / "pytriton" / "tritonserver"
        self.python = self.python or self.home / "venv" / "bin"
        libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH", "")]
        environment = {
            **os.environ,
            # The stub takes its packages from where it finds `python3`.
            "PATH": os.pathsep.join([str(self.python), os.environ["PATH"]]),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("PYTHONPATH", "COVERAGE_PROCESS_START"):
            environment.pop(name, None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    home / "bin" / "tritonserver",
                    f"--model-repository={self.repository}",
                    f"--backend-directory={home / 'backends'}",
                    f"--cache-directory={home / 'caches'}",
                    "--http-address=127.0.0.1",
                    "--grpc-address=127.0.0.1",
                    "--metrics-address=127.0.0.1",
                    f"--http-port={self.http_port}",
                    f"--grpc-port={self.grpc_port}",
                    f"--metrics-port={self.metrics_port}",
                    "--exit-timeout-secs=5",
                    *self.options,
                ],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + START_SECONDS
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise AssertionError(self.text()[-4000:])
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it; kill it where it does not."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None

    def kill(self) -> None:
        """End it at once."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def ready(self) -> bool:
        """Whether it answers and its models are ready.

        Metrics are served last: milliseconds after HTTP answers that all is ready.
        """
        return self.status("v2/health/ready") == 200 and listening(self.metrics_port)

    def model_ready(self, model: str) -> bool:
        """Whether a model is ready."""
        return self.status(f"v2/models/{model}/ready") == 200

    def status(self, path: str, body: bytes | None = None) -> int:
        """Return the HTTP status of a request; 0 where nobody answers."""
        request = urllib.request.Request(f"http://{self.http}/{path}", data=body)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def json(self, path: str) -> dict[str, Any]:
        """Return what a GET answers."""
        with urllib.request.urlopen(f"http://{self.http}/{path}", timeout=30) as answer:
            table: dict[str, Any] = json.load(answer)
        return table

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name and labels."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        pairs = [line.rpartition(" ") for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    @property
    def http(self) -> str:
        """The address of HTTP."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        """The address of gRPC."""
        return f"127.0.0.1:{self.grpc_port}"

    def text(self) -> str:
        """Return its log."""
        return self.log.read_text("utf-8", "replace")

    def rss_bytes(self) -> int:
        """Return the resident memory of the server and its stubs."""
        import psutil

        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        total = 0
        for each in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
        return total


def listening(port: int) -> bool:
    """Whether somebody listens on a port of the loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that nobody listens on.

    They lie below those that systems give to outgoing connections: one of these could take the
    port before the server does, or between its stop and its next start.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(15_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            if port not in ports:
                ports.append(port)
    return ports


@contextlib.contextmanager
def serving(home: Path, repository: Path, log: Path, *options: str) -> Iterator[Server]:
    """Yield a running server, stopped at the end."""
    server = Server(home, repository, log, options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
