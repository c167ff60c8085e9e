"""The program in a bundle: its entry point, and ``lora_export.ondevice``, which it runs."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

from lora_export.bundle.packing import ENTRY_POINT
from lora_export.core.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.abc import Traversable

__all__ = ["program"]

_CODE: Final = resources.files("lora_export.ondevice")

_RUN: Final = '''\
"""Check this bundle on the machine it lies on; python3 run.py --help says how."""

import sys

if sys.version_info < (3, 10):
    sys.stderr.write("error: Python 3.10 is needed, this is %d.%d\\n" % sys.version_info[:2])
    sys.exit(7)

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT))
try:
    from lora_export.ondevice.bundle.main import main
    from lora_export.ondevice.printable_stream import run_protected
except ImportError as error:
    sys.stderr.write("error: %s\\nNumPy 1.21 or newer is needed: pip install numpy\\n" % error)
    sys.exit(7)

sys.exit(run_protected(lambda: main(ROOT)))
'''

_PACKAGE: Final = '''\
"""The part of lora-export that runs on a device."""

__version__ = "{version}"
'''


def program() -> dict[str, bytes]:
    """Return the files that a bundle runs, by their path in it."""
    code = {f"lora_export/ondevice/{path}": data for path, data in _modules(_CODE, "")}
    package = _PACKAGE.format(version=VERSION)
    return {**code, "lora_export/__init__.py": package.encode(), ENTRY_POINT: _RUN.encode()}


def _modules(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    """Yield the Python files of a package and of those in it, by their path in the first."""
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir():
            yield from _modules(each, f"{path}{each.name}/")
        elif each.name.endswith(".py"):
            yield f"{path}{each.name}", each.read_bytes()
