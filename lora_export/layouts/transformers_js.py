"""transformers.js: ``pipeline(task, DIR)`` in node and in browsers.

    onnx/model.onnx, onnx/model.onnx_data       float32; model_fp16, model_int8, model_q4, …
    onnx/encoder_model.onnx, onnx/decoder_model_merged.onnx, …
    config.json, tokenizer.json, …

``config.json`` has a section ``transformers.js_config``: the dtype that is there, so that a user
need not name it, and which graphs have their values in a file beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.graph.forms.axis_names import with_axis_names
from lora_export.graph.forms.wide_interface import with_float32_interface
from lora_export.graph.spec import tasks
from lora_export.layouts.companion_tables import companions
from lora_export.layouts.description import Layout, PlacedGraph
from lora_export.layouts.hub_files import hub_config, hub_files, note_on_tokenizer
from lora_export.layouts.hub_graphs import hub_graphs
from lora_export.layouts.model_types import require_js_type
from lora_export.layouts.requirements import (
    require_growing_cache,
    require_numpy_dtype,
    require_portable,
)

if TYPE_CHECKING:
    from lora_export.core.json_file import JsonObject
    from lora_export.core.manifest import BaseRecord
    from lora_export.layouts.description import ExportKind, Subject

__all__ = ["describe_transformers_js", "require_transformers_js"]

_NAME: Final = "transformers.js"
_SECTION: Final = "transformers.js_config"
_HALF: Final = "float16"
_AXES: Final = {"batch": "batch_size"}
_QUERIES: Final = "multi_query"
"""A setting that makes transformers.js expect a cache of one tensor for each layer."""
_DTYPES: Final = {
    ("", "float32"): ("fp32", ""),
    ("", _HALF): ("fp16", "_fp16"),
    ("int8", "float32"): ("int8", "_int8"),
    ("int8", _HALF): ("int8", "_int8"),
    ("int4", "float32"): ("q4", "_q4"),
    ("int4", _HALF): ("q4f16", "_q4f16"),
}
"""Scheme of the weights and dtype of the rest → the runtime's name for both, and the end of its
graphs' names."""


def require_transformers_js(kind: ExportKind) -> None:
    """Require of an export that transformers.js can run it.

    Raises:
        UnsupportedError: It has no class for the task and the model type; or it is a decoder
            without a cache, or with a static one.
    """
    require_growing_cache(kind, _NAME)
    require_portable(kind, _NAME)
    require_js_type(kind.model_type, kind.task)


def describe_transformers_js(subject: Subject) -> Layout:
    """Return the directory of an adapter or of the base.

    Raises:
        UnsupportedError: A graph has no form that transformers.js reads.
        ExportDirectoryError: A file of the export is missing or damaged.
    """
    require_numpy_dtype(subject, _NAME)
    dtype, ending = _variant(subject.manifest.base)
    graphs = hub_graphs(subject)
    files = companions(subject)
    config = hub_config(subject, files, graphs)
    names = [f"{name}{ending}.onnx" for name in graphs]
    if _QUERIES in config:
        config[_QUERIES] = False
    config[_SECTION] = _section(dtype, names, subject.manifest.base.dtype)
    placed = hub_files(files, config, complete=True)
    return Layout(
        subject.adapters,
        tuple(
            PlacedGraph(f"onnx/{name}", f"{name}_data", _form(graph))
            for name, graph in zip(names, graphs.values(), strict=True)
        ),
        placed,
        notes=(*note_on_tokenizer(subject, placed), *_note_on_pooling(subject.manifest.base)),
    )


def _note_on_pooling(base: BaseRecord) -> tuple[str, ...]:
    """Return how embeddings are made of the token states, which the runtime reads nowhere."""
    if not tasks.by_name(base.task).pooled:
        return ()
    what = f"embeddings are made by: {base.pooling}"
    return (f"{what}; pass that to pipeline, or read the output sentence_embedding",)


def _form(graph: bytes) -> bytes:
    return with_axis_names(with_float32_interface(graph), _AXES)


def _variant(base: BaseRecord) -> tuple[str, str]:
    quantized = base.quantization
    return _DTYPES["" if quantized is None else quantized.weights, base.dtype]


def _section(dtype: str, names: list[str], computed: str) -> JsonObject:
    """Return what transformers.js has to know of the graphs: its own section of the config."""
    section: JsonObject = {
        "dtype": dtype,
        "use_external_data_format": dict.fromkeys(names, 1),
    }
    if computed == _HALF:
        section["kv_cache_dtype"] = {dtype: _HALF}
    return section
