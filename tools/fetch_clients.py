"""Make the environment of a runtime that opens what ``lora-export layout`` writes.

Each runtime has an environment of its own, with the versions and hashes of its lock file: they need
versions of transformers or NumPy that lora-export does not, and a user has no lora-export there.

    python -m tools.fetch_clients build/clients/genai
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from tools.locked_download import install

__all__ = ["main"]


def main() -> None:
    """Install the lock file ``client-NAME`` into the environment that is called NAME."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    venv: Path = parser.parse_args().venv
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    install(venv / "bin" / "python", f"client-{venv.name}")
    (venv / ".installed").touch()
    print(venv)


if __name__ == "__main__":
    main()
