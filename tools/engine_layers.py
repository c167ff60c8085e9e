"""The kernels that TensorRT for RTX compiles a graph to, read from its builder's log.

    python -m tools.engine_layers EXPORT [GRAPH ...] [--json]

An engine lists its layers only where it can be loaded, which takes a GPU. The builder says them in
its verbose log as well, and so they can be read on any machine: how many kernels, which of them
multiply matrices, which only move or convert values, and which attentions it recognised.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.manifest import read_manifest
from lora_export.engines.jobs import profiles_for
from lora_export.graph.adapters.required_inputs import without_defaults
from lora_export.ondevice.external_data import read_graph
from lora_export.ondevice.trt.api import Log
from lora_export.ondevice.trt.builder_profiles import add_profiles
from lora_export.ondevice.trt.network_edits import decompose_attention, dequantize_constants

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.core.manifest import Manifest

__all__ = ["EngineLayers", "build_log", "summarise"]

trt: Any = importlib.import_module("tensorrt_rtx")

_LAYER: Final = re.compile(r"^Name: (\S+), LayerType: (\S+),", re.MULTILINE)
_ATTENTION: Final = re.compile(r"^Found (\S+) to be part of self-attention pattern", re.MULTILINE)
_MOVES: Final = ("Move", "Tran", "Resh", "Conc", "Repl", "Slic", "Cast")


@dataclass(frozen=True)
class EngineLayers:
    """The layers of an engine.

    Attributes:
        kernels: How many there are.
        types: How many of each type.
        moves: Kernels that move or convert values and compute nothing.
        attentions: Softmaxes that the builder recognised as those of an attention.
        softmaxes: All of them, in the graph.
        engine_bytes: The size of the plan.
    """

    kernels: int
    types: dict[str, int]
    moves: list[str]
    attentions: int
    softmaxes: int
    engine_bytes: int


class _Verbose(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        del severity
        self.lines.append(msg)


def build_log(root: Path, manifest: Manifest, graph: str) -> tuple[str, int, int]:
    """Build an engine; return the builder's log, the plan's bytes and the softmaxes of the graph.

    Args:
        root: The export directory.
        manifest: Its manifest.
        graph: One of its graphs, with the default profiles.
    """
    record = manifest.graphs[graph]
    model = without_defaults(read_graph(root / record.onnx))
    logger = _Verbose()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model, str(root / record.onnx)):
        sys.exit(f"error: {parser.get_error(0).desc()}")
    log = Log(trt)
    decompose_attention(network, log)
    dequantize_constants(network, log)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profiles = profiles_for(root, manifest, record.onnx, model, ())
    add_profiles(builder, network, config, profiles, record.onnx)
    softmaxes = sum(
        network.get_layer(at).type == trt.LayerType.SOFTMAX for at in range(network.num_layers)
    )
    begun = len(logger.lines)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit(f"error: {logger.lines[-1]}")
    return "\n".join(logger.lines[begun:]), plan.nbytes, softmaxes


def summarise(log: str, engine_bytes: int, softmaxes: int) -> EngineLayers:
    """Return what a builder's verbose log says of an engine's layers."""
    layers = _LAYER.findall(log)
    return EngineLayers(
        kernels=len(layers),
        types=dict(Counter(kind for _, kind in layers).most_common()),
        moves=[name for name, kind in layers if kind == "kgen" and _only_moves(name)],
        attentions=sum("softmax" in each.lower() for each in _ATTENTION.findall(log)),
        softmaxes=softmaxes,
        engine_bytes=engine_bytes,
    )


def _only_moves(name: str) -> bool:
    """Whether a generated kernel, which is called after its operations, computes nothing.

    >>> _only_moves("__myl_MoveReplConc_myl0_4"), _only_moves("__myl_AddReshTran_myl0_3")
    (True, False)
    """
    operations = re.findall(r"[A-Z][a-z0-9]*", name.removeprefix("__myl_").rpartition("_myl")[0])
    return bool(operations) and all(each[:4] in _MOVES for each in operations)


def main(words: Sequence[str]) -> None:
    """Print the layers of an export's graphs."""
    parser = argparse.ArgumentParser(prog="python -m tools.engine_layers")
    parser.add_argument("export", type=Path)
    parser.add_argument("graphs", nargs="*", metavar="GRAPH")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    manifest = read_manifest(options.export)
    for graph in options.graphs or manifest.graphs:
        found = summarise(*build_log(options.export, manifest, graph))
        if options.json:
            print(json.dumps({graph: asdict(found)}))
            continue
        types = ", ".join(f"{count} {kind}" for kind, count in found.types.items())
        moves = Counter(re.sub(r"_myl.*|^__myl_", "", each[6:]) for each in found.moves)
        shown = ", ".join(f"{count} {name}" for name, count in moves.most_common())
        print(f"{graph}: {found.kernels} kernels ({types}); {found.engine_bytes / 1e6:.1f} MB")
        print(f"  {found.attentions} of {found.softmaxes} softmaxes are of recognised attentions")
        print(f"  {len(found.moves)} kernels only move or convert: {shown or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:])
