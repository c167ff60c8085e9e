"""A double of ``trtexec``: it builds with the double of TensorRT, version 10.3, and says so.

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
KNOWN = {
    "onnx", "saveEngine", "stronglyTyped", "noTF32", "versionCompatible", "stripWeights",
    "hardwareCompatibilityLevel", "builderOptimizationLevel", "memPoolSize", "profile", "minShapes",
    "optShapes", "maxShapes", "timingCacheFile", "skipInference",
}  # fmt: skip
"""Options of trtexec 10.3 that we use (samples/common/sampleOptions.cpp)."""


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def profiles(arguments: list[str]) -> list[dict[str, dict[str, str]]]:
    """Return min, opt and max of each profile: `--profile=N` stands before the N-th."""
    found: list[dict[str, dict[str, str]]] = [{}]
    for each in arguments:
        key, _, value = each[2:].partition("=")
        if key == "profile":
            assert int(value) in (len(found) - 1, len(found)), "the numbers are not in order"
            found += [{}] if int(value) == len(found) else []
        elif key.endswith("Shapes"):
            found[-1][key.removesuffix("Shapes")] = dict(p.rsplit(":", 1) for p in value.split(","))
    return found


def main() -> int:
    say("&&&& RUNNING TensorRT.trtexec [TensorRT-double v100300] [b26] # " + " ".join(sys.argv))
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
    if unknown := set(flags) - KNOWN:
        say(f"[E] Unknown option: --{min(unknown)}")
        return 1

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: object, msg: str) -> None:
            say(f"[E] {severity} {msg}")

    builder = trt.Builder(Logger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, Logger()).parse(Path(flags["onnx"]).read_bytes(), flags["onnx"])
    config = builder.create_builder_config()
    for shapes in profiles(sys.argv[1:]):
        profile = builder.create_optimization_profile()
        for name in shapes["min"]:
            profile.set_shape(name, *(tuple(map(int, shapes[w][name].split("x"))) for w in WHICH))
        config.add_optimization_profile(profile)
    Path(flags["saveEngine"]).write_bytes(builder.build_serialized_network(network, config))
    Path(flags["timingCacheFile"]).write_bytes(b"timings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
