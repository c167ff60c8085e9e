"""``python -m tools.templates [FAMILY...]``: make the templates that ship with the package.

Templates of other families stay as they are. ``--list`` only names what would be made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from lora_export.core.errors import LoraExportError
from lora_export.graph.templates.matching import NoTemplateError
from lora_export.graph.templates.shipped import DATA, FREQUENCIES
from tools.templates.fit import NoFormulaError
from tools.templates.index_file import read_rows, write_row, write_rows, zipped
from tools.templates.make import Subject, make, rope_frequencies, sha256_of
from tools.templates.subjects import subjects

_ROPE_THETAS = (10000, 100000, 130000, 150000, 250000, 500000, 1000000, 5000000, 10000000)
_ROPE_LLAMA3 = tuple(f"llama3:500000.0:{factor}:1.0:4.0:8192.0" for factor in ("8.0", "32.0"))
_ROPE_DIMS = (*range(2, 130, 2), 160, 192, 256)


def main() -> int:
    """Make the templates of the families that are named, or of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--list", action="store_true")
    parser.add_argument(
        "--missing", action="store_true", help="make those alone that are not there"
    )
    arguments = parser.parse_args()
    chosen = [
        each
        for each in subjects()
        if not arguments.families or each.model_type in arguments.families
    ]
    rows = read_rows()
    failed = 0
    if not arguments.list:
        write_frequencies()
    for subject in chosen:
        if arguments.list:
            print(subject.name)
            continue
        if arguments.missing and f"{subject.name}.zip" in rows:
            continue
        started = time.monotonic()
        try:
            row = write(subject)
        except (NoFormulaError, NoTemplateError, LoraExportError) as error:
            failed += 1
            print(f"{subject.name}: {error}", file=sys.stderr)
            continue
        write_row(row)
        print(f"{subject.name}: {time.monotonic() - started:.0f} s", flush=True)
    return 1 if failed else 0


def write(subject: Subject) -> dict[str, Any]:
    """Make one template and its file; return its row of the index."""
    table, graphs = make(subject)
    members = {f"{name}.onnx": data for name, data in graphs.items()}
    members["template.json"] = json.dumps(table, sort_keys=True, separators=(",", ":")).encode()
    data = zipped(members)
    path = DATA / f"{subject.name}.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    keys = ("model_type", "task", "dtype", "opset", "choices", "sentence")
    row = {key: table[key] for key in keys}
    return {"file": f"{subject.name}.zip", "sha256": sha256_of(data), **row}


def write_frequencies() -> None:
    """Write the rotary frequencies that templates know."""
    ropes = (*(f"default:{float(theta)}" for theta in _ROPE_THETAS), *_ROPE_LLAMA3)
    members = {
        f"{rope}:{dim}": rope_frequencies(rope, dim).astype("<f4").tobytes()
        for rope in ropes
        for dim in _ROPE_DIMS
    }
    DATA.mkdir(exist_ok=True)
    (DATA / FREQUENCIES).write_bytes(zipped(members))
    write_rows(read_rows())


if __name__ == "__main__":
    sys.exit(main())
