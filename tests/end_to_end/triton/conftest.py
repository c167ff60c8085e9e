"""The server that ``make test-triton`` fetched, and exports to serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.servers import mark_below
from tests.helpers.triton import served_exports

if TYPE_CHECKING:
    from tests.helpers.models import TinyModels

HOME = os.environ.get("LORA_EXPORT_TRITON")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = "needs the server: make test-triton" if HOME is None else None
    mark_below(Path(__file__).parent, items, "triton", absent=absent)


@pytest.fixture(scope="session")
def home() -> Path:
    """The folder that ``tools/fetch_triton.py`` made."""
    assert HOME is not None
    return Path(HOME).resolve()


@pytest.fixture(scope="session")
def exports(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of each mode; copy one before changing it."""
    return served_exports(tiny, tmp_path_factory.mktemp("served"))
