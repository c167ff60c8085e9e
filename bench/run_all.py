"""Measure every claim, one after another, and print what was met. Results: ``bench/results/``.

The scripts' own options apply: ``--repeat``, ``--peers-python``, ``--work-dir``. Hours on two
cores, most of them the peers'; about 45 GB of disk while it runs. A claim whose tools are not
there is named, and left out: ``triton_load`` needs the server that ``make test-triton`` fetches,
``fleet_cluster`` the environment of ``make test-ray``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import _environment

CLAIMS: Final = (
    "export_speed",
    "graph_cache",
    "roberta_base",
    "add_adapter",
    "llama_1b",
    "merge_checkpoint",
    "graph_quality",
    "opsets",
    "merge_at_load",
    "switching",
    "modes",
    "gate",
    "table1",
    "swappable_decoder",
    "batched_overhead",
    "peers",
    "triton_load",
    "rtx_build",
    "quantize_kernel",
    "quantization_survival",
    "quantized_export",
    "quantized_peers",
    "quantized_base",
    "decoder",
    "encoders",
    "fleet_local",
    "fleet_cluster",
)
BENCH: Final = Path(__file__).resolve().parent
NEEDS: Final = {
    "triton_load": _environment.ROOT / "build" / "triton" / "venv",
    "fleet_cluster": _environment.ROOT / "build" / "cluster" / ".installed",
}
"""What a claim needs and does not make itself."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=CLAIMS, action="append", help="a claim; repeatable")
    parser.add_argument("--repeat", type=int, help="repetitions; each script has its own default")
    parser.add_argument("--peers-python", type=Path, help="an environment made from peers.txt")
    parser.add_argument("--work-dir", type=Path, help="where checkpoints and exports go (build/)")
    parser.add_argument("--output-dir", type=Path, default=BENCH / "results")
    parser.add_argument("--gate", action="store_true", help="exit 1 where a target is not met")
    options = parser.parse_args()
    peers_python = _environment.ensure_peers(options.peers_python)

    failed: list[str] = []
    missed: list[str] = []
    lacking = [] if options.only else [each for each in CLAIMS if not _ready(each)]
    for claim in options.only or [each for each in CLAIMS if each not in lacking]:
        output = options.output_dir / f"{claim}.json"
        command = [sys.executable, str(BENCH / f"{claim}.py"), "--output", str(output)]
        command += ["--peers-python", str(peers_python)]
        if options.repeat is not None:
            command += ["--repeat", str(options.repeat)]
        if options.work_dir is not None:
            command += ["--work-dir", str(options.work_dir)]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(claim)
            continue
        targets = json.loads(output.read_text("utf-8"))["targets"]
        missed += [f"{claim}: {target['what']}" for target in targets if not target["met"]]

    print()
    for claim in lacking:
        print(f"left out: {claim}, which needs {NEEDS[claim]}")
    for claim in failed:
        print(f"not measured: {claim}")
    for target in missed:
        print(f"not met: {target}")
    if not failed and not missed:
        print("every target was met")
    sys.exit(1 if failed or (missed and options.gate) else 0)


def _ready(claim: str) -> bool:
    return claim not in NEEDS or NEEDS[claim].exists()


if __name__ == "__main__":
    main()
