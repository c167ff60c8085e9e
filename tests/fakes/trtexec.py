"""A double of ``trtexec``: it builds with the double of TensorRT, version 10.3.

Two environment variables steer it: ``TRTEXEC_LOG`` is a file that gets its command line, and with
``TRTEXEC_FAILS`` it ends as a build does that fails.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
WHICH = ("min", "opt", "max")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def main() -> int:
    say("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b26] # " + " ".join(sys.argv))
    if "--help" in sys.argv:
        return 0
    if log := os.environ.get("TRTEXEC_LOG"):
        Path(log).write_text(json.dumps(sys.argv))
    if os.environ.get("TRTEXEC_FAILS"):
        say("[E] Error[4]: [network.cpp::validate::2919] the build broke off")
        return 1
    sys.path.insert(0, str(REPOSITORY))
    from tests.helpers.double import load_double

    trt = load_double("10.3.0")
    flags = dict(each[2:].partition("=")[::2] for each in sys.argv[1:])

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: object, msg: str) -> None:
            say(f"[E] {severity} {msg}")

    builder = trt.Builder(Logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, Logger()).parse(Path(flags["onnx"]).read_bytes(), flags["onnx"])
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    shapes = {w: dict(p.split(":") for p in flags[f"{w}Shapes"].split(",")) for w in WHICH}
    for name in shapes["min"]:
        profile.set_shape(name, *(tuple(map(int, shapes[w][name].split("x"))) for w in WHICH))
    config.add_optimization_profile(profile)
    Path(flags["saveEngine"]).write_bytes(builder.build_serialized_network(network, config))
    Path(flags["timingCacheFile"]).write_bytes(b"timings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
