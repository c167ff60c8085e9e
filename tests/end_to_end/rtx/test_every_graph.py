"""Every kind of graph that is written, parsed and built by TensorRT for RTX; no GPU is needed."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from lora_export.commands import engines
from lora_export.core.engine_record import read_engine_record
from lora_export.core.manifest import read_manifest
from lora_export.core.modes import BASE_GRAPH
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.preflight import preflight
from lora_export.ondevice.trt.build_record import record_file
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES, TEXT, PAIR = "text-classification", "text-generation", "text2text-generation"
IMAGES, SPEECH = "image-classification", "automatic-speech-recognition"

FAST: list[tuple[str, str, dict[str, Any]]] = [
    ("roberta", CLASSES, {}),
    ("roberta", CLASSES, {"mode": "swappable", "opset": 24, "dtype": "float16"}),
    ("roberta", CLASSES, {"mode": "batched"}),
    ("gpt2", TEXT, {"opset": 24}),
    ("gpt2", TEXT, {"cache_length": 24}),
    ("llama", TEXT, {"cache_length": 24, "opset": 24, "dtype": "bfloat16"}),
    ("t5", PAIR, {}),
    ("vit", IMAGES, {"opset": 24}),
    ("roberta", CLASSES, {"mode": "swappable", "quantize": "int4", "dtype": "float16"}),
    ("gpt2", TEXT, {"quantize": "int8", "cache_length": 24}),
    ("t5", PAIR, {"quantize": "int4"}),
]
"""Each mode, dtype, opset and cache at least once, each kind of model, and quantized weights."""

KINDS = (
    ("bert", CLASSES), ("roberta", CLASSES), ("distilbert", CLASSES), ("deberta-v2", CLASSES),
    ("llama", CLASSES), ("gpt2", TEXT), ("llama", TEXT), ("llama-tied", TEXT), ("t5", PAIR),
    ("bart", PAIR), ("whisper", SPEECH), ("vit", IMAGES),
)  # fmt: skip
MODES = ("merged", "swappable", "batched")
DTYPES = ("float32", "float16", "bfloat16")
OPSETS = (20, 24)
EVERY = 37


def _sweep() -> list[Any]:
    """Return every combination; static caches of decoders, and modes that a pair has."""
    rows = []
    for (kind, task), mode, dtype, opset in itertools.product(KINDS, MODES, DTYPES, OPSETS):
        if mode != "merged" and task in (PAIR, SPEECH):
            continue  # refused: a pair serves merged adapters
        if mode == "batched" and kind == "deberta-v2":
            continue  # refused: its positions are projected apart from the rows of a batch
        if mode == "swappable" and dtype == "bfloat16":
            continue  # refused: no pack is written in bfloat16
        for length in (None, 24) if task == TEXT else (None,):
            settings: dict[str, Any] = {"mode": mode, "dtype": dtype, "opset": opset}
            if length is not None:
                settings["cache_length"] = length
            name = f"{kind}-{task}-{mode}-{dtype}-{opset}{'-static' if length else ''}"
            rows.append(pytest.param(kind, task, settings, id=name))
    return rows


def _quantized() -> list[Any]:
    """Return the combinations of the sweep in float32 and float16, once with each scheme.

    Opset 20 has no blocks: there, int4 takes the first that has them.
    """
    rows = []
    for row, scheme in itertools.product(_sweep(), ("int4", "int8")):
        kind, task, settings = row.values
        if settings["dtype"] == "bfloat16":
            continue
        opset = {"opset": 21} if scheme == "int4" and settings["opset"] == OPSETS[0] else {}
        chosen = {**settings, **opset, "quantize": scheme}
        rows.append(pytest.param(kind, task, chosen, id=f"{row.id}-{scheme}"))
    return rows


def _thinned(rows: list[Any]) -> list[Any]:
    """Return the rows, one of `EVERY` to run with the slow tests and the others at night."""
    marks = [pytest.mark.nightly if at % EVERY else pytest.mark.slow for at in range(len(rows))]
    return [
        pytest.param(*row.values, id=row.id, marks=mark)
        for row, mark in zip(rows, marks, strict=True)
    ]


def exported(
    tiny: TinyModels, export_dir: Path, kind: str, task: str, settings: dict[str, Any]
) -> Path:
    """Export a tiny model with an adapter, for the target ``rtx``."""
    base = tiny.base(kind, task)
    labels = {} if task in (CLASSES, IMAGES) else {"labels_count": None}
    adapters = {"one": tiny.adapter(base, task=task, **labels)}
    build(
        base,
        adapters,
        export_dir,
        task=task,
        targets=["rtx"],
        bundle={"enabled": False},
        **settings,
    )
    return export_dir


def assert_built(export_dir: Path) -> None:
    """Build every graph that serves, and require what was promised of the engines."""
    records = engines.build(export_dir, "rtx", options=EngineOptions(library=TENSORRT_RTX))
    manifest = read_manifest(export_dir)
    serving = {name: each for name, each in manifest.graphs.items() if name != BASE_GRAPH}
    files = [file for each in serving.values() for file in each.graph_files]
    assert [next(iter(each["onnx"])) for each in records] == files
    for row, file in zip(records, files, strict=True):
        plan = export_dir / row["plan"]["file"]
        record = read_engine_record(plan)
        assert record.format_version == 2
        assert (record.library, record.built_on) == (TENSORRT_RTX, "host")
        assert record.capabilities == ["8.0", "8.6", "8.9", "12.0"]
        assert record.precision == manifest.base.dtype
        assert record.plan.sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
        graph = onnx.load(export_dir / file, load_external_data=False).graph
        assert set(record.inputs) == {each.name for each in graph.input}
        assert set(record.outputs) == {each.name for each in graph.output}
        assert {record.plan.file, record_file(record.plan.file)} <= set(
            read_manifest(export_dir).files
        )


def assert_read(export_dir: Path) -> None:
    """Require that the parser reads every graph, and that the tables say the same."""
    report = preflight(export_dir, "rtx", parser=True)
    assert report.parser is not None
    assert report.of_severity("error") == []
    for graph in report.graphs:
        codes = [each.code for each in graph.findings]
        assert codes.count("parser-reads") == 1
        assert not {"operator-unknown", "operator-restricted", "parser-differs"} & set(codes)


@pytest.mark.parametrize(("kind", "task", "settings"), FAST)
def test_graphs_are_read_and_built(
    tiny: TinyModels, tmp_path: Path, kind: str, task: str, settings: dict[str, Any]
) -> None:
    export_dir = exported(tiny, tmp_path / "out", kind, task, settings)
    assert_read(export_dir)
    assert_built(export_dir)


@pytest.mark.parametrize(
    ("kind", "task", "settings"), [*_thinned(_sweep()), *_thinned(_quantized())]
)
def test_every_combination_is_read_and_built(
    tiny: TinyModels, tmp_path: Path, kind: str, task: str, settings: dict[str, Any]
) -> None:
    export_dir = exported(tiny, tmp_path / "out", kind, task, settings)
    assert_read(export_dir)
    assert_built(export_dir)
