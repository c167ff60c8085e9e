"""The environments that ``make test-clients`` made, and scripts that are run in them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.client_cases import Case, make_case
from tests.helpers.servers import mark_below
from tools.fetch_npm_client import node

if TYPE_CHECKING:
    from collections.abc import Callable

HOME = os.environ.get("LORA_EXPORT_CLIENTS")
SCRIPTS = Path(__file__).with_name("scripts")
collect_ignore = ["scripts"]  # they run in the runtimes' environments


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = "needs the runtimes: make test-clients" if HOME is None else None
    mark_below(Path(__file__).parent, items, "clients", absent=absent)


@pytest.fixture(scope="session")
def clients() -> Path:
    """The folder with an environment for each runtime."""
    assert HOME is not None
    return Path(HOME).resolve()


@pytest.fixture(scope="session")
def run_client(clients: Path) -> Callable[..., Any]:
    """Return a function that runs a script with jobs: JSON on stdin, JSON on stdout."""

    def run(environment: str, script: str, jobs: Any) -> Any:
        done = subprocess.run(
            [clients / environment / "bin" / "python", SCRIPTS / script],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
        )
        assert not done.returncode, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def run_node(clients: Path) -> Callable[..., Any]:
    """Return a function that runs a script with jobs in transformers.js."""

    def run(script: str, jobs: Any) -> Any:
        done = subprocess.run(
            [node() / "bin" / "node", SCRIPTS / script],
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=clients / "transformers-js",
        )
        assert not done.returncode, done.stderr[-4000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Return a function that exports a family for a task, once in a session."""
    made: dict[str, Case] = {}

    def case(family: str, task: str, **settings: Any) -> Case:
        key = json.dumps([family, task, settings])
        if key not in made:
            made[key] = make_case(family, task, tmp_path_factory.mktemp("case"), **settings)
        return made[key]

    return case
