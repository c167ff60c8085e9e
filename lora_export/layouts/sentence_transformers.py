"""sentence-transformers: ``SentenceTransformer(DIR, backend="onnx")``.

    modules.json, 1_Pooling/config.json, …       the chain of modules, as the base has it
    onnx/model.onnx, onnx/model.onnx_data        token states; pooling follows in Python
    sentence_bert_config.json, config.json, tokenizer.json, …

It opens the graph with optimum-onnx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError
from lora_export.graph.forms.wide_interface import with_float32_interface
from lora_export.layouts.companion_tables import companions
from lora_export.layouts.description import Layout, PlacedGraph
from lora_export.layouts.hub_files import hub_config, hub_files, note_on_tokenizer
from lora_export.layouts.hub_graphs import MODEL, hub_graphs
from lora_export.layouts.model_types import require_optimum_type
from lora_export.layouts.requirements import require_numpy_dtype
from lora_export.weights.companion_files import SENTENCE

if TYPE_CHECKING:
    from lora_export.layouts.description import ExportKind, Subject

__all__ = ["describe_sentence_transformers", "require_sentence_transformers"]

_NAME: Final = "sentence-transformers"
_MODULES: Final = "modules.json"
_TASKS: Final = ("sentence-similarity", "feature-extraction")
_SETTINGS: Final = ("sentence_bert_config.json", "config_sentence_transformers.json")


def require_sentence_transformers(kind: ExportKind) -> None:
    """Require of an export that sentence-transformers can run it.

    Raises:
        UnsupportedError: Its task is another one, or its model type is not known.
    """
    if kind.task not in _TASKS:
        msg = f"{_NAME} makes embeddings; an export for {kind.task} has none"
        raise UnsupportedError(msg, hint=f"It takes exports for {' and '.join(_TASKS)}.")
    require_optimum_type(kind.model_type)


def describe_sentence_transformers(subject: Subject) -> Layout:
    """Return the directory of an adapter or of the base.

    Raises:
        UnsupportedError: The export says nothing of how embeddings are pooled, or its graph does
            not have the states of tokens.
        ExportDirectoryError: A file of the export is missing or damaged.
    """
    require_numpy_dtype(subject, _NAME)
    files = companions(subject)
    if _MODULES not in files:
        msg = f"the export has no {_MODULES}, which says how embeddings are made of token states"
        hint = "Export a model that sentence-transformers saved."
        raise UnsupportedError(msg, hint=hint)
    graphs = hub_graphs(subject)
    placed = hub_files(files, hub_config(subject, files, graphs))
    placed |= {
        name: path
        for name, path in files.items()
        if name in _SETTINGS or SENTENCE.fullmatch(name) is not None
    }
    graph = with_float32_interface(graphs[MODEL])
    return Layout(
        subject.adapters,
        (PlacedGraph("onnx/model.onnx", "model.onnx_data", graph),),
        placed,
        notes=note_on_tokenizer(subject, placed),
    )
