"""One export per architecture and module, whatever the order of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.graph.families import FAMILIES, Family, make_family

if TYPE_CHECKING:
    from tests.helpers.models import TinyModels


@pytest.fixture(scope="session")
def families(
    tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Family]:
    """Families that were made in this session."""
    return {}


@pytest.fixture(params=FAMILIES, ids="-".join)
def family(
    request: pytest.FixtureRequest,
    tiny: TinyModels,
    tmp_path_factory: pytest.TempPathFactory,
    families: dict[tuple[str, str], Family],
) -> Family:
    """Return one of the architectures, exported once per session."""
    key: tuple[str, str] = request.param
    if key not in families:
        kind, task = key
        folder = tmp_path_factory.mktemp(f"{kind}-{task}") / "graph"
        families[key] = make_family(tiny, kind, task, folder)
    return families[key]
