"""A fleet whose store is a server of S3: it works, refuses, cheats, and vanishes."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.commands.fleet.expand import plan_fleet
from lora_export.commands.fleet.fetch import fetch_fleet
from lora_export.commands.fleet.run import run_fleet
from lora_export.commands.fleet.spec import load_fleet
from lora_export.commands.fleet.worker import perform
from lora_export.core.errors import StorageError
from lora_export.core.progress import Silent
from lora_export.fleet.store.open_store import open_store
from tests.helpers.fleet_exports import assert_equal_exports
from tests.helpers.fleets import InlineExecutor, run_here, tiny_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lora_export.commands.fleet.run import FleetOutcome
    from tests.helpers.models import TinyModels

STORE = "s3://fleet/nightly"


@pytest.fixture
def fleet(tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a fleet of tiny models whose store is a bucket."""
    monkeypatch.setenv("LORA_EXPORT_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("LORA_EXPORT_CACHE", str(tmp_path / "cache"))
    return tiny_fleet(tiny, tmp_path, store=STORE)


def run(fleet: Path, work: Any = perform) -> FleetOutcome:
    """Run a fleet in this process."""
    plan = plan_fleet(load_fleet(fleet), Silent())
    return run_fleet(plan, executor=InlineExecutor(work, jobs=1))


def test_a_fleet_in_a_bucket_is_that_of_a_directory(s3: Any, fleet: Path, tmp_path: Path) -> None:
    there = run(fleet)
    fetch_fleet(STORE, tmp_path / "fetched", Silent())
    fleet.write_text(fleet.read_text().replace(STORE, "whole"))
    here = run_here(fleet)
    assert there.exit_code == here["exit"] == 5
    assert {row["id"]: row["status"] for row in there.table["rows"]} == {
        name: row["status"] for name, row in here.items() if name != "exit"
    }
    first, second = (tmp_path / each / "exports/tiny/merged" for each in ("whole", "fetched"))
    assert_equal_exports(first, second, places=False)
    s3.stop()
    with pytest.raises(StorageError, match="refuses"):
        open_store(STORE).keys()


def test_a_store_that_vanishes_fails_the_rows_that_need_it(s3: Any, fleet: Path) -> None:
    done: list[str] = []

    def work(task: Mapping[str, Any]) -> dict[str, Any]:
        if task["row"]["kind"] == "adapter":
            s3.stop()
        done.append(task["row"]["id"])
        return perform(task)

    plan = plan_fleet(load_fleet(fleet), Silent())
    with pytest.raises(StorageError):  # the report of the run cannot be stored either
        run_fleet(plan, executor=InlineExecutor(work, jobs=1))
    assert done[0] == "export:tiny/merged"


class _Refusing(BaseHTTPRequestHandler):
    """Answers everything with 403."""

    def _refuse(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _refuse  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def refusing(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a server that refuses in the place of S3."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("refusing")
def test_a_store_that_refuses_is_named(tmp_path: Path) -> None:
    store = open_store(STORE)
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="refuses to") as error:
        store.put("a" * 64, tmp_path, ["file"], kind="input", name="n")
    assert error.value.exit_code == 3
    assert STORE in error.value.message
