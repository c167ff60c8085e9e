"""Readers of what the tool writes: manifests, reports, records, indexes of repositories."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.engine_record import EngineRecord, read_engine_record
from lora_export.core.errors import InputError, LoraExportError
from lora_export.core.journal import is_committed
from lora_export.core.layout_record import LAYOUT_RECORD, LayoutRecord, read_layout
from lora_export.core.manifest import MANIFEST_NAME, QUANTIZED_VERSION, Manifest, read_manifest
from lora_export.core.merge_record import RECORD_NAME, MergeRecord, read_record
from lora_export.core.reports.fidelity_report import FidelityReport
from lora_export.core.reports.graph_report import GraphReport
from lora_export.core.reports.latency_report import LatencyReport
from lora_export.core.reports.parity_report import ParityReport
from lora_export.core.reports.quantization_report import QuantizationReport
from lora_export.core.reports.report_model import parse_report
from lora_export.ondevice.trt.runtime_cache import CacheKey, read_cache, write_cache
from lora_export.triton.protobuf_schema import parse_config
from lora_export.triton.serving.index import FORMAT, INDEX_NAME, WAYS, BadIndexError, read_index
from tools.reader_fuzz.examples import example_of
from tools.reader_fuzz.mutate_bytes import mutate_bytes
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from random import Random

    from lora_export.core.reports.report_model import ReportModel
    from tools.reader_fuzz.reader import Mutator

__all__ = ["RECORDS"]

_JSON: Final[tuple[Mutator, ...]] = (mutate_json,)
_REPORTS: Final[dict[str, type[ReportModel]]] = {
    "parity": ParityReport,
    "latency": LatencyReport,
    "fidelity": FidelityReport,
    "quantization": QuantizationReport,
    "graph": GraphReport,
}


def _table(
    name: str, table: Callable[[], Any], read: Callable[[Path], object], _fixed: Path
) -> Target:
    """Return the reader of a table of settings in JSON."""
    return Target(({name: json.dumps(table(), indent=1).encode()},), {name: _JSON}, read)


def _report(kind: str, _fixed: Path) -> Target:
    model = _REPORTS[kind]
    seed = {"x.json": json.dumps(example_of(model)).encode()}
    return Target(
        (seed,),
        {"x.json": _JSON},
        lambda folder: parse_report(model, (folder / "x.json").read_bytes(), "x.json"),
    )


def _manifest() -> dict[str, Any]:
    table = example_of(Manifest)
    table["adapters"] = {"one": table["adapters"]["base"]}
    table["base"]["conversions"] = []
    table["format_version"] = QUANTIZED_VERSION  # every optional part is there
    for uses in table["parameters"].values():
        for use in uses:
            use["graph"] = "base"  # the graph that there is
    return table


def _serving() -> dict[str, Any]:
    return {
        "format": FORMAT, "way": next(iter(WAYS)), "graph": "base.onnx", "graph_bytes": 10,
        "weights": "w.bin", "base": True, "fingerprint": "a", "inputs": ["ids"],
        "outputs": ["logits"],
        "adapters": {"one": {"file": "one.onnx", "nbytes": 10, "row": 1, "width": 3}},
        "matrices": {"a": {"initializer": "a", "out_axis": 0}}, "axes": {"ids": ["batch", 4]},
        "base_width": 2,
    }  # fmt: skip


_CONFIG: Final = b"""name: "base"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "k" value: { string_value: "v" } }
dynamic_batching { max_queue_delay_microseconds: 100 }
"""
_WORDS: Final = (
    b"{", b"}", b"[", b"]", b"<", b">", b":", b'"', b"'", b"#", b"input {" * 200, b"-1", b"1e999",
    b"nan", b"inf",
    b"99999999999999999999", b"0x7f", b"TYPE_INT64", b"true", b'"\xff\xfe"', b'"\\xff"',
    b"[a.b.c/a] {}", b"[a.b]: 1",
    b"ensemble_scheduling {", b"sequence_batching {", b'"\xe2\x80\xae"', b"1" * 5000, b"_" * 5000,
    b'""', b"1.5",
)  # fmt: skip


def _mutate_words(chance: Random, data: bytes) -> bytes:
    """Return the text of a message with a few words exchanged, removed or added."""
    words = data.split()
    for _ in range(chance.randint(1, 2)):
        place, kind = chance.randrange(len(words)), chance.randrange(4)
        if kind == 0 and len(words) > 1:
            del words[place]
        else:
            word = chance.choice((chance.choice(words), chance.choice(_WORDS)))
            words[place : place + (kind > 1)] = [word]
    return b" ".join(words)


def _pbtxt(_fixed: Path) -> Target:
    return Target(
        ({"config.pbtxt": _CONFIG},),
        {"config.pbtxt": (mutate_bytes, _mutate_words, _mutate_words)},
        lambda folder: parse_config(folder / "config.pbtxt"),
    )


def _journal(_fixed: Path) -> Target:
    """Return the reader of an export's manifest."""
    return _table(MANIFEST_NAME, _manifest, _read_manifest, _fixed)


def _read_manifest(folder: Path) -> None:
    is_committed(folder, read_manifest(folder).files)


_KEY: Final = CacheKey("a" * 64, "tensorrt-rtx", "1.7.1", "RTX 4090", "8.9", "12.9")


def _kernels(fixed: Path) -> Target:
    """Return the reader of what a GPU compiled of an engine, which refuses by returning None."""
    file = fixed / "one.cache"
    write_cache(file, _KEY, bytes(range(256)), print)

    def read(folder: Path) -> None:
        if read_cache(folder / file.name, _KEY, lambda _: None) is None:
            msg = "there are no kernels for this plan, GPU and driver"
            raise InputError(msg)

    return Target(({file.name: file.read_bytes()},), {file.name: (mutate_bytes,)}, read)


RECORDS: Final[Mapping[str, Reader]] = {
    "manifest": Reader(_journal),
    **{f"report-{kind}": Reader(partial(_report, kind)) for kind in _REPORTS},
    "merge-record": Reader(
        partial(_table, RECORD_NAME, lambda: example_of(MergeRecord), read_record)
    ),
    "layout-record": Reader(
        partial(_table, LAYOUT_RECORD, lambda: example_of(LayoutRecord), read_layout)
    ),
    "engine-record": Reader(
        partial(
            _table,
            "base.json",
            lambda: example_of(EngineRecord),
            lambda folder: read_engine_record(folder / "base.plan"),
        )
    ),
    "kernels": Reader(_kernels),
    "serving": Reader(
        partial(_table, INDEX_NAME, _serving, read_index), errors=(LoraExportError, BadIndexError)
    ),
    "pbtxt": Reader(_pbtxt),
}
"""The readers of what the tool writes."""
