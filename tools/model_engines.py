"""Build engines of the model families with TensorRT for RTX: a column of docs/models.md.

Every graph is built as an export's is, with the default profiles and random weights, in each dtype
that the family is exported in. No GPU is needed.

Usage: python -m tools.model_engines [--opset N] [--dtype DTYPE] [--missing] [--rows N] [NAME ...]

What is built is printed; with the page's opset the column of these rows is written, too. Rows are
those of the page, which `tools.models` writes. --missing builds only what is not there yet. Where
TensorRT for RTX is not installed, that is said, and the page stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import transformers

from lora_export.core.errors import LoraExportError
from lora_export.core.files import sha256_of_file
from lora_export.engines.profiles import profiles_of
from lora_export.exports.graph_files import write_graphs
from lora_export.graph.spec import tasks
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.graph.spec.template import Placement
from lora_export.ondevice.trt.api import import_library
from lora_export.ondevice.trt.build_settings import BuildSettings
from lora_export.ondevice.trt.engine_builder import BuildJob, build
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from lora_export.weights.positions import longest_text
from tools.model_families import FAMILIES, Family
from tools.model_rows import DATA, PAGE, TOLERANCES, Row, page, rows_by_task
from tools.models import OPSET, exported

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lora_export.core.parameters import Parameter
    from lora_export.graph.spec.template import GraphTemplate

__all__ = ["build_engines", "dtypes_of", "engine_problem"]

DTYPES: Final = ("float32", *TOLERANCES)
WEIGHTS: Final = "weights/all.raw"
TARGET: Final = "rtx"
_SPREAD: Final = 0.1


def dtypes_of(row: Row) -> tuple[str, ...]:
    """Return the dtypes that a row's family is exported in."""
    refused = {dtype for dtype, half in row.halves.items() if half.refused}
    return () if row.refused else tuple(each for each in DTYPES if each not in refused)


def engine_problem(family: Family, task_name: str, dtype: str, opset: int = OPSET) -> str:
    """Return why no engine of a family is built, ``""`` where one is."""
    try:
        template = exported(family, tasks.by_name(task_name), dtype, opset)
        with tempfile.TemporaryDirectory() as folder:
            build_engines(template, family, dtype, Path(folder))
    except LoraExportError as error:
        return error.message
    return ""


def build_engines(template: GraphTemplate, family: Family, dtype: str, folder: Path) -> None:
    """Build an engine of each graph of a template.

    Args:
        template: The graphs.
        family: Their family.
        dtype: Their dtype.
        folder: Where the graphs, weights and plans are written.

    Raises:
        DeviceError: The parser refuses a graph, or the builder does.
    """
    placements = _write_weights(template.parameters, folder)
    graphs = (template.onnx_bytes, template.encoder_bytes)
    written = write_graphs(folder, "graph", graphs, placements)
    hashes = {**written.files, WEIGHTS: sha256_of_file(folder / WEIGHTS)}
    longest = longest_text(getattr(transformers, family.config)(**family.settings).to_dict())
    for file in written.files:
        inputs = read_signature(parse_onnx((folder / file).read_bytes())).inputs
        profiles = profiles_of(inputs, longest=longest)
        job = BuildJob(
            root=folder,
            graph=file.removesuffix(".onnx"),
            target=TARGET,
            onnx=file,
            weights=(WEIGHTS,),
            sha256=hashes,
            base_fingerprint="",
            settings=BuildSettings(dtype, profiles),
            library=TENSORRT_RTX,
        )
        build(job)


def _write_weights(parameters: Sequence[Parameter], folder: Path) -> dict[str, Placement]:
    """Write random values of parameters; return where each lies."""
    chance = np.random.default_rng(0)
    placements = {}
    path = folder / WEIGHTS
    path.parent.mkdir()
    with path.open("wb") as stream:
        for each in parameters:
            raw = _values(each, chance).tobytes()
            placements[each.name] = Placement(WEIGHTS, stream.tell(), len(raw))
            stream.write(raw)
    return placements


def _values(parameter: Parameter, chance: np.random.Generator) -> npt.NDArray[Any]:
    values = chance.standard_normal(parameter.shape, np.float32) * np.float32(_SPREAD)
    return values.astype(parameter.stored_dtype.numpy)


def main(words: Sequence[str]) -> None:
    """Build the families that are named, or all of them; write the column, or print it."""
    parser = argparse.ArgumentParser(prog="python -m tools.model_engines")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--opset", type=int, default=OPSET)
    parser.add_argument(
        "--dtype", choices=DTYPES, action="append", help="only this one; repeatable"
    )
    parser.add_argument("--missing", action="store_true", help="build only what is not there yet")
    parser.add_argument("--rows", type=int, help="build so many rows at most")
    options = parser.parse_args(words)
    families = {family.name: family for family in FAMILIES}
    if unknown := sorted(set(options.names) - set(families)):
        sys.exit(f"unknown family {unknown[0]!r}; known: {', '.join(families)}")
    wanted = {
        (row.family, row.task): [
            each
            for each in dtypes_of(row)
            if each in (options.dtype or DTYPES) and not (options.missing and each in row.engines)
        ]
        for row in rows_by_task().values()
        if not options.names or row.family in options.names
    }
    left = [(*key, dtypes) for key, dtypes in wanted.items() if dtypes]
    try:
        import_library(TENSORRT_RTX)
    except LoraExportError as error:
        print(error, file=sys.stderr)
        return
    failed = False
    for name, task, dtypes in left[: options.rows]:
        found = {each: engine_problem(families[name], task, each, options.opset) for each in dtypes}
        failed |= any(found.values())
        said = ", ".join(f"{dtype}: {why or 'built'}" for dtype, why in found.items())
        print(f"{name}, {task}: {said}", flush=True)
        if options.opset == OPSET:
            _store(name, task, found)
    sys.exit(1 if failed else 0)


def _store(family: str, task: str, found: dict[str, str]) -> None:
    """Write what was found into the page's data, and the page."""
    rows = rows_by_task()
    row = rows[family, task]
    known = {**row.engines, **found}
    engines = {each: known[each] for each in DTYPES if each in known}
    rows[family, task] = replace(row, engines=engines)
    DATA.write_text(json.dumps([asdict(each) for each in rows.values()], indent=1) + "\n")
    PAGE.write_text(page(list(rows.values())))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    main(sys.argv[1:])
