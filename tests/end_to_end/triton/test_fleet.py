"""A fleet that ends in a repository which a live server reads, also when it runs again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from lora_export.triton.check_repository import check_repository
from tests.end_to_end.triton.clients import Client
from tests.end_to_end.triton.server import serving
from tests.helpers.fleets import run_here, scale, tiny_fleet
from tests.helpers.triton import CLOSE, goldens

if TYPE_CHECKING:
    from pathlib import Path

    from tests.end_to_end.triton.server import Server
    from tests.helpers.models import TinyModels

MODES = ("merged", "swappable", "batched")


def answers_are_golden(server: Server, store: Path, name: str, *, model: str, adapter: str) -> bool:
    """Return whether a model answers the golden inputs of an adapter with its golden outputs."""
    client = Client(server)
    golden = goldens(store / "exports/tiny" / name)[adapter]
    return all(
        np.allclose(client.ask(model, case.feeds, adapter),
                    wanted, **CLOSE)
        for case, wanted in zip(golden.cases, golden.expected, strict=True)
    )  # fmt: skip


@pytest.fixture
def fleet(tiny: TinyModels, tmp_path: Path) -> Path:
    """Return a fleet in three modes, one of whose adapters fails."""
    deploy = {"triton": {"repository": "repository/", "backend": "python"}}
    tiny_fleet(tiny, tmp_path, variants=[{"mode": mode} for mode in MODES], deploy=deploy)
    return tmp_path / "fleet.yaml"


def test_a_live_server_reads_what_passed_and_what_changed(home: Path, fleet: Path) -> None:
    folder = fleet.parent
    rows = run_here(fleet)
    assert rows["exit"] == 5  # idle
    for mode in MODES:
        row = rows[f"triton:tiny/{mode}"]
        assert (row["status"], row["notes"]) == (
            "done", ["idle is left out: the export has no adapter 'idle'"],
        )  # fmt: skip
    assert not any(check_repository(folder / "repository").values())
    store = folder / "out"
    with serving(home, folder / "repository", folder / "log") as server:
        for mode in MODES:
            for name in ("one", "two"):
                assert answers_are_golden(server, store, mode, model=f"tiny-{mode}", adapter=name)
        feeds = goldens(store / "exports/tiny/swappable")["one"].cases[0].feeds
        with pytest.raises(InferenceServerException, match="idle"):
            Client(server).ask("tiny-swappable", feeds, "idle")

        scale(folder / "adapters" / "two", 3.0)
        shutil.rmtree(folder / "adapters" / "idle")
        again = run_here(fleet)
        assert again["exit"] == 0
        for mode in MODES:  # no model was loaded again
            assert again[f"triton:tiny/{mode}"]["status"] == "done"
            for name in ("one", "two"):
                assert answers_are_golden(server, store, mode, model=f"tiny-{mode}", adapter=name)

    last = run_here(fleet)
    assert {row["status"] for name, row in last.items() if name != "exit"} == {"skipped"}
    shutil.rmtree(folder / "repository" / "tiny-merged")  # lost: it is written again, alone
    mended = run_here(fleet)
    done = [name for name, row in mended.items() if name != "exit" and row["status"] == "done"]
    assert done == ["triton:tiny/merged"]
