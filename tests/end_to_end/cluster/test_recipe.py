"""The recipe of a fleet: one command locally, and one on two nodes of Ray whose workers die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_export.core.files import sha256_of_file
from tests.helpers.fleet_exports import assert_equal_engines, assert_equal_exports
from tests.helpers.killed_workers import workers_killed

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "recipes" / "fleet"
BASE = (ROOT / "models" / "all-MiniLM-L6-v2").resolve()


def command(*words: str | Path) -> str:
    """Run a command; return what it prints."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(not BASE.is_dir(), reason="needs the checkpoint: make model")
def test_a_cluster_makes_of_the_recipe_what_one_machine_makes(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu12")
    monkeypatch.setenv("LORA_EXPORT_SCRATCH", str(tmp_path / "scratch"))
    command(RECIPE / "make_adapters.py", tmp_path / "adapters")
    table = yaml.safe_load((RECIPE / "fleet.yaml").read_text())
    table["bases"]["minilm"]["path"] = str(BASE)
    table["adapters"][0]["path"] = str(tmp_path / "adapters" / "*")
    table["store"] = "out"
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump(table))
    run = ("-m", "lora_export", "fleet", "run", str(fleet), "--quiet")
    command(*run, "--jobs", str(os.cpu_count()))  # one thread each, as on the cluster
    (tmp_path / "out").rename(tmp_path / "whole")
    with workers_killed(most=4) as killed:
        command(*run, "--ray", cluster.address)
    assert len(killed) == 4
    first, second = (
        json.loads((tmp_path / each / "report.json").read_text()) for each in ("whole", "out")
    )
    assert first["counts"] == second["counts"] == {"done": 41}
    assert [row["id"] for row in first["rows"]] == [row["id"] for row in second["rows"]]
    for variant in ("merged-float16", "swappable-float16"):
        mine, theirs = (tmp_path / each / "exports/minilm" / variant for each in ("whole", "out"))
        assert_equal_exports(mine, theirs)
        assert_equal_engines(mine, theirs, plans=variant.startswith("merged"))
        bundle = f"bundles/minilm-{variant}-jetson-orin.tar"
        assert sha256_of_file(tmp_path / "whole" / bundle) == sha256_of_file(
            tmp_path / "out" / bundle
        )
