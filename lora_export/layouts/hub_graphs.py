"""The graphs of an adapter by the names and in the form of optimum, for the runtimes that share it.

    model                                      of most tasks
    encoder_model, decoder_model_merged        of an encoder-decoder

A graph that pools token states into a sentence embedding returns the states too: these runtimes
pool by themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lora_export.graph.forms.merged_decoder import merged_pair
from lora_export.graph.forms.token_states import with_token_states
from lora_export.graph.spec import tasks
from lora_export.layouts.adapter_graph import graphs_of
from lora_export.weights.pooling_source import pooling_beside
from lora_export.weights.sentence import read_sentence_head

if TYPE_CHECKING:
    from lora_export.layouts.description import Subject

__all__ = ["DECODER", "ENCODER", "MODEL", "hub_graphs"]

MODEL: Final = "model"
ENCODER: Final = "encoder_model"
DECODER: Final = "decoder_model_merged"


def hub_graphs(subject: Subject) -> dict[str, bytes]:
    """Return the graphs of an adapter or the base, by their names without an ending.

    Raises:
        UnsupportedError: A graph has no such form.
        ExportDirectoryError: A file of the export is missing or damaged.
    """
    graph, encoder = graphs_of(subject)
    if encoder is not None:
        first, second = merged_pair(encoder, graph)
        return {ENCODER: first, DECODER: second}
    if tasks.by_name(subject.manifest.base.task).pooled:
        return {MODEL: with_token_states(graph, dense=_dense_layers(subject))}
    return {MODEL: graph}


def _dense_layers(subject: Subject) -> list[str]:
    """Return the names of the modules with weights that follow a pooling."""
    pooling = pooling_beside(subject.export_dir / "hf")
    if pooling is None:
        return []
    head, _ = read_sentence_head(pooling)
    return [layer.name for layer in head.dense]
