"""``python -m lora_export`` and the console script."""

from __future__ import annotations

import os
import sys

# The products of a merge are thin: handing them to threads costs more than it gains. NumPy reads
# this when it is loaded; torch and ONNX Runtime have thread pools of their own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from lora_export.cli import run

__all__ = ["main"]


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
