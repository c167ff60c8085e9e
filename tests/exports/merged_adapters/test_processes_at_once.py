"""Several processes that add to one export at once."""

from __future__ import annotations

import subprocess
import sys

from lora_export.core.manifest import read_manifest
from tests.exports.merged_adapters.example import intact
from tests.helpers.measure import ROOT

ADD = """
import sys, time
from pathlib import Path
from lora_export.commands.add import add
from lora_export.core.adapter_spec import AdapterSpec
root, start, adapters = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
time.sleep(max(0, start - time.time()))
for argument in adapters:
    name, _, source = argument.partition("=")
    add(root, [AdapterSpec(name=name, source=source)])
"""


def test_adds_of_several_processes_all_arrive(export_dir, one, two, wide):
    import time

    start = time.time() + 1.5
    wanted = [
        [f"{kind}-{process}-{index}={folder}" for index in range(3)]
        for process, (kind, folder) in enumerate((("two", two), ("wide", wide), ("one", one)))
    ]
    processes = [
        subprocess.Popen([sys.executable, "-c", ADD, export_dir, str(start), *adapters], cwd=ROOT)
        for adapters in wanted
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    manifest = read_manifest(export_dir)
    names = {argument.partition("=")[0] for adapters in wanted for argument in adapters}
    assert set(manifest.adapters) == names | {"one"}
    assert set(manifest.graphs) == names | {"one", "base"}
    assert intact(export_dir)


def test_two_processes_that_add_the_same_name_one_wins_and_the_export_is_whole(
    export_dir, two, wide
):
    import time

    start = time.time() + 1.5
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, export_dir, str(start), f"new={folder}"],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        for folder in (two, wide)
    ]
    codes = sorted(process.wait(timeout=120) for process in processes)
    assert codes == [0, 1]
    assert set(read_manifest(export_dir).adapters) == {"one", "new"}
    assert intact(export_dir)
