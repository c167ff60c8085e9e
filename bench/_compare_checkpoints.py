"""Compare two checkpoints tensor by tensor, one tensor at a time, in either environment.

Usage: python _compare_checkpoints.py FIRST SECOND. Prints the largest relative error as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open


def tensors_of(folder: Path) -> dict[str, Any]:
    """Return each tensor's open file by its name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, "numpy")
        found |= dict.fromkeys(file.keys(), file)
    return found


def main() -> None:
    first, second = (tensors_of(Path(each)) for each in sys.argv[1:])
    assert set(first) == set(second), set(first) ^ set(second)
    largest, unequal, entries = 0.0, 0, 0
    for name, file in first.items():
        one = file.get_tensor(name).astype(np.float32)
        other = second[name].get_tensor(name).astype(np.float32)
        largest = max(largest, float(np.linalg.norm(one - other) / np.linalg.norm(other)))
        unequal += int(np.count_nonzero(one != other))
        entries += one.size
    print(json.dumps({"relative_l2": largest, "unequal_share": unequal / entries}))


if __name__ == "__main__":
    main()
