"""The program of a bundle: its entry point, and the package that it runs."""

from __future__ import annotations

from importlib import resources
from typing import Final

from lora_export import __version__
from lora_export.deploy.bundle import ENTRY_POINT

__all__ = ["program"]

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
    from lora_export.device.main import main
except ImportError as error:
    sys.stderr.write("error: %s\\nNumPy 1.21 or newer is needed: pip install numpy\\n" % error)
    sys.exit(7)

sys.exit(main(ROOT))
'''

_PACKAGE: Final = '''\
"""The part of lora-export that runs on a device."""

__version__ = "{version}"
'''


def program() -> dict[str, bytes]:
    """Return the files that a bundle runs, by their path in it."""
    folder = resources.files("lora_export.device")
    code = {
        f"lora_export/device/{each.name}": each.read_bytes()
        for each in folder.iterdir()
        if each.name.endswith(".py")
    }
    package = _PACKAGE.format(version=__version__)
    return {**code, "lora_export/__init__.py": package.encode(), ENTRY_POINT: _RUN.encode()}
