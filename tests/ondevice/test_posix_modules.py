"""Code for devices, without the modules and names that Windows does not have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import lora_export.ondevice
from lora_export.ondevice.posix_modules import posix_module
from tests.helpers.windows import LIKE_WINDOWS, MISSING_MODULES

ROOT = Path(lora_export.ondevice.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parents[1]).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
)

FILES = """
from pathlib import Path
from lora_export.ondevice.device_files import atomic_write_bytes, exclusive_lock, staging_folder
from lora_export.ondevice.file_opening import read_file

root = Path(sys.argv[1])
assert len(atomic_write_bytes(root / "a.bin", b"a\\r\\nb\\x1a")) == 64
assert read_file(root / "a.bin", 99) == b"a\\r\\nb\\x1a"
with staging_folder(root) as other, staging_folder(root) as own:
    assert other.is_dir() and own.is_dir()  # nobody sweeps the other's away
with exclusive_lock(root / "lock"):
    pass
assert sorted(each.name for each in root.iterdir()) == ["a.bin", "lock"]
from lora_export.ondevice.trt.monitor import peak_host_bytes
assert peak_host_bytes() == 0
"""


def run(code: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIKE_WINDOWS + code, *arguments],
        cwd=ROOT.parents[1], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_module_is_imported() -> None:
    run("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in MODULES))


def test_files_are_written_and_read(tmp_path: Path) -> None:
    run(FILES, str(tmp_path))


@pytest.mark.parametrize("name", ["fcntl", "resource"])
def test_a_module_that_is_not_there(name: str) -> None:
    assert name in MISSING_MODULES
    assert posix_module(name) is not None
    assert posix_module("there_is_no_such_module") is None
