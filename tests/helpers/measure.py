"""Functions run in processes of their own: peak memory, file size limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "run_python"]

ROOT = Path(__file__).parents[2]

_PEAK = """
import resource, json
_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak_bytes": _peak, "result": globals().get("result")}))
"""


def run_python(code: str, *arguments: object, check: bool = True) -> dict[str, Any]:
    """Run `code` in a fresh interpreter; return its peak memory and its variable ``result``.

    The code finds `arguments` in ``sys.argv``. The answer has ``returncode`` and ``stderr`` too.
    """
    # Not with fork: ru_maxrss would begin at this process's.
    done = subprocess.run(
        [sys.executable, "-c", code + _PEAK, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    answer = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
    return {**answer, "returncode": done.returncode, "stderr": done.stderr}
