"""``python -m lora_export`` and the console script."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import NoReturn

# The products of a merge are thin: handing them to threads costs more than it gains. NumPy reads
# this when it is loaded; torch and ONNX Runtime have thread pools of their own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# pydantic would look through the metadata of every installed package for plugins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and leave with its exit code.

    The process ends here: files are closed and staging folders gone when `run` returns, and taking
    torch's modules apart would keep the user waiting for another two seconds.
    """
    try:
        from lora_export.ondevice.printable_stream import run_protected

        code = run_protected(_run)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            sys.stderr.write("interrupted; nothing half-written was left\n")
            sys.stderr.flush()
        code = 130
    os._exit(code)


def _run() -> int:
    from lora_export.core.garbage import collect_less_often  # here: Ctrl-C is caught meanwhile

    collect_less_often()
    from lora_export.cli import run

    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done
    return code


if __name__ == "__main__":
    main()
