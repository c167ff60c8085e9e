"""Tests that one of pytest-xdist's workers runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import groups

REPOSITORY = Path(__file__).parents[1]


def test_tests_of_a_file_or_of_a_folder_that_shares_exports_stay_together() -> None:
    assert groups.group_of("tests/core/test_modes.py::test_one[a::b]") == "tests/core/test_modes.py"
    for file in ("test_model.py::test_one", "serving/test_model.py::test_two[3]"):
        assert groups.group_of(f"tests/triton/{file}") == "tests/triton/"
    assert (
        groups.group_of("lora_export/cli/say.py::lora_export.cli.say") == "lora_export/cli/say.py"
    )


@pytest.mark.parametrize("folder", groups.SHARING)
def test_a_folder_that_stays_together_has_fixtures_to_share(folder: str) -> None:
    shared = (REPOSITORY / folder / "conftest.py").read_text("utf-8")
    assert 'scope="package"' in shared or 'scope="session"' in shared


def test_the_scheduler_of_the_test_run_reads_the_groups(request: pytest.FixtureRequest) -> None:
    manager = request.config.pluginmanager
    assert manager.hasplugin("xdist")
    for dist, expected in (("loadgroup", groups.FolderScheduling), ("load", None)):
        config = pytest.Config.fromdictargs({}, ["--tx", "2*popen", "--dist", dist])
        found = manager.hook.pytest_xdist_make_scheduler(config=config, log=None)
        assert type(found) is expected if expected else found is None
