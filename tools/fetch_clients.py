"""Make the environment of a runtime that opens what ``lora-export layout`` writes.

Each runtime has an environment of its own, with the versions and hashes of its lock file: they need
versions of transformers or NumPy that lora-export does not, and a user has no lora-export there.

    python -m tools.fetch_clients build/clients/genai

torch and what else is large is installed once: an environment of `_LAYERED` has its own packages
first, and behind them those of the environment that runs this.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

from tools.locked_download import install

__all__ = ["main"]

_LAYERED: Final = frozenset({"optimum"})
"""Environments whose lock file has no dependencies."""
_LAYER: Final = "zz_torch_and_others.pth"


def main() -> None:
    """Install the lock file ``client-NAME`` into the environment that is called NAME."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    venv: Path = parser.parse_args().venv
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    install(venv / "bin" / "python", f"client-{venv.name}")
    if venv.name in _LAYERED:
        _add_layer(venv)
    (venv / ".installed").touch()
    print(venv)


def _add_layer(venv: Path) -> None:
    """Let an environment import what this one has, where it has no package of the name itself."""
    (own,) = venv.glob("lib/python3.*/site-packages")
    base = sysconfig.get_path("purelib")
    (own / _LAYER).write_text(f"import site; site.addsitedir({base!r})\n", "utf-8")


if __name__ == "__main__":
    main()
