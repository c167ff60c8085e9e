"""A real build on a disk that refuses, or that is interrupted: nothing is left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from tests.helpers.builds import build, file_hashes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels


def exported(tiny: TinyModels, tmp_path: Path) -> Path:
    base = tiny.base("roberta", "text-classification")
    export_dir = tmp_path / "out"
    build(base, {"one": tiny.adapter(base)}, export_dir)
    return export_dir


def test_a_full_disk_leaves_no_plan(tiny: TinyModels, tmp_path: Path) -> None:
    export_dir = exported(tiny, tmp_path)
    before = file_hashes(export_dir)

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    result = subprocess.run(
        [sys.executable, "-m", "lora_export", "build", str(export_dir), "--target", "rtx"],
        preexec_fn=small_files, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 3, result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert file_hashes(export_dir) == before


def test_ctrl_c_during_a_build_leaves_no_plan(tiny: TinyModels, tmp_path: Path) -> None:
    export_dir = exported(tiny, tmp_path)
    before = file_hashes(export_dir)
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_export", "build", str(export_dir), "--target", "rtx"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    said = ""
    while "building" not in said:
        said += process.stderr.readline()
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode in (0, 130), said + rest  # 0: it was done before
    if process.returncode:
        assert "Traceback" not in said + rest
        assert file_hashes(export_dir) == before
