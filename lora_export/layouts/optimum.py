"""optimum-onnx: ``ORTModelFor….from_pretrained(DIR)`` of each task.

model.onnx, model.onnx_data                               the graph, of most tasks
encoder_model.onnx, decoder_model_merged.onnx, …_data     of an encoder-decoder
config.json, generation_config.json, tokenizer.json, …    what transformers 4 reads
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.core.errors import UnsupportedError
from lora_export.graph.forms.empty_past import with_any_empty_past
from lora_export.layouts.companion_tables import companions
from lora_export.layouts.description import Layout, PlacedGraph
from lora_export.layouts.hub_files import hub_config, hub_files, note_on_tokenizer
from lora_export.layouts.hub_graphs import hub_graphs
from lora_export.layouts.model_types import require_optimum_type
from lora_export.layouts.requirements import (
    require_growing_cache,
    require_numpy_dtype,
    require_portable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_export.layouts.description import ExportKind, Subject

__all__ = ["OPTIMUM_CLASSES", "describe_optimum", "require_optimum"]

_NAME: Final = "optimum-onnx"
OPTIMUM_CLASSES: Final[Mapping[str, str]] = {
    "text-classification": "ORTModelForSequenceClassification",
    "token-classification": "ORTModelForTokenClassification",
    "question-answering": "ORTModelForQuestionAnswering",
    "fill-mask": "ORTModelForMaskedLM",
    "feature-extraction": "ORTModelForFeatureExtraction",
    "sentence-similarity": "ORTModelForFeatureExtraction",
    "text-generation": "ORTModelForCausalLM",
    "text2text-generation": "ORTModelForSeq2SeqLM",
    "automatic-speech-recognition": "ORTModelForSpeechSeq2Seq",
    "image-classification": "ORTModelForImageClassification",
}
"""Task → the class of optimum.onnxruntime that opens a directory of it."""
_UNKNOWN_TASKS: Final = frozenset({"image-feature-extraction"})


def require_optimum(kind: ExportKind) -> None:
    """Require of an export that optimum-onnx can run it.

    Raises:
        UnsupportedError: Its task or model type is not known there; or it is a decoder without a
            cache, or with a static one.
    """
    if kind.task in _UNKNOWN_TASKS:
        msg = f"{_NAME} has no class for {kind.task}"
        raise UnsupportedError(msg, hint="ONNX Runtime runs the export itself: open_export.")
    require_growing_cache(kind, _NAME)
    require_portable(kind, _NAME)
    require_optimum_type(kind.model_type)


def describe_optimum(subject: Subject) -> Layout:
    """Return the directory of an adapter or of the base.

    Raises:
        UnsupportedError: A graph has no form that optimum-onnx reads.
        ExportDirectoryError: A file of the export is missing or damaged.
    """
    require_numpy_dtype(subject, _NAME)
    graphs = hub_graphs(subject)
    files = companions(subject)
    placed = hub_files(files, hub_config(subject, files, graphs))
    return Layout(
        subject.adapters,
        tuple(
            PlacedGraph(f"{name}.onnx", f"{name}.onnx_data", with_any_empty_past(graph))
            for name, graph in graphs.items()
        ),
        placed,
        notes=note_on_tokenizer(subject, placed),
    )
