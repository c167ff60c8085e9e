"""``python -m lora_export`` and the console script."""

from __future__ import annotations

import sys

from lora_export.cli import run

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
