"""Copy files with fsync, and print the seconds it took as JSON: the floor under ``add``.

Usage: python _copy.py FOLDER FILE…
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 1 << 22


def copy_synced(source: Path, target: Path) -> int:
    """Copy `source` to the new file `target`, synced; return the number of bytes."""
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    total = 0
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            writer.write(buffer[:count])
            total += count
        os.fsync(writer.fileno())
    return total


def main() -> None:
    folder, *files = map(Path, sys.argv[1:])
    start = time.monotonic()
    total = sum(copy_synced(file, folder / file.name) for file in files)
    print(json.dumps({"seconds": time.monotonic() - start, "bytes": total}))


if __name__ == "__main__":
    main()
