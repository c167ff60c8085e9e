"""The peers' second step without its validation, which ``optimum-cli`` cannot switch off.

Run in their environment, to tell the cost of the export from that of checking it.

Usage: python _peer_export.py MODEL OUT TASK
"""

from __future__ import annotations

import sys

from optimum.exporters.onnx import main_export


def main() -> None:
    model, output, task = sys.argv[1:]
    main_export(model, output, task=task, do_validation=False)


if __name__ == "__main__":
    main()
