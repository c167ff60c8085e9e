"""onnxruntime-genai: a decoder with its cache, ``genai_config.json``, and packs to swap.

model.onnx, model.onnx.data      the graph
genai_config.json                what the runtime has to know of it
tokenizer.json, …                the tokenizer, with its chat template
adapters/<name>.onnx_adapter     of a swappable export: a pack for each adapter
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.core.config_numbers import text_settings
from lora_export.core.errors import UnsupportedError
from lora_export.core.files import resolve_inside
from lora_export.core.graph_forms import ORT_FORM
from lora_export.core.modes import SWAPPABLE_GRAPH
from lora_export.exports.stored_adapters import form_of
from lora_export.graph.ort_form.packed_products import pack_products
from lora_export.graph.spec import tasks
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.layouts.adapter_graph import graphs_of
from lora_export.layouts.companion_tables import (
    companions,
    generation_table,
    json_content,
    model_config,
    tokenizer_files,
)
from lora_export.layouts.description import Layout, PlacedGraph
from lora_export.layouts.genai_config import genai_config
from lora_export.layouts.genai_types import genai_type
from lora_export.layouts.requirements import require_growing_cache
from lora_export.weights.companion_files import CONFIG, GENERATION_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from lora_export.layouts.description import ExportKind, Subject
    from lora_export.weights.companion_files import Content

__all__ = ["describe_genai", "require_genai"]

_TASK: Final = "text-generation"
_GRAPH: Final = "model.onnx"
_DATA: Final = "model.onnx.data"
_CONFIG: Final = "genai_config.json"
_TOKENIZER: Final = "tokenizer.json"
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_ANY_TOKENIZER: Final = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
}


def require_genai(kind: ExportKind) -> None:
    """Require of an export that onnxruntime-genai can run it.

    Raises:
        UnsupportedError: It is not a decoder, has no cache or a static one, or is of a model type
            that the runtime does not support.
    """
    if kind.task != _TASK:
        pair = tasks.by_name(kind.task).encoder_decoder
        why = ", which is an encoder and a decoder" if pair else ""
        msg = f"onnxruntime-genai cannot run an export for {kind.task}{why}"
        raise UnsupportedError(msg, hint=f"It runs decoders: exports for {_TASK}.")
    require_growing_cache(kind, "onnxruntime-genai")
    genai_type(kind.model_type)


def describe_genai(subject: Subject) -> Layout:
    """Return the directory of an adapter, of the base, or of all packs.

    Raises:
        UnsupportedError: See `genai_config` and `graphs_of`.
        ExportDirectoryError: A file of the export is missing or damaged.
    """
    graph, _ = graphs_of(subject)
    packed = pack_products(graph)
    files = companions(subject)
    swappable = subject.name == SWAPPABLE_GRAPH
    config = model_config(subject, files, None)
    table = genai_config(
        config,
        generation_table(files),
        read_signature(parse_onnx(graph)),
        filename=_GRAPH,
        quiet=swappable,
        shared_buffer=form_of(subject.manifest) == ORT_FORM,
    )
    placed = {
        **_tokenizer(files),
        CONFIG: json_content(config),
        _CONFIG: json_content(table),
    }
    if GENERATION_CONFIG in files:
        placed[GENERATION_CONFIG] = files[GENERATION_CONFIG]
    if swappable:
        placed |= _packs(subject)
    return Layout(
        subject.adapters,
        (PlacedGraph(_GRAPH, _DATA, packed.onnx_bytes, packed.values),),
        placed,
        notes=(*_notes_on_texts(subject, placed, config), *_notes_on_packs(subject)),
    )


def _tokenizer(files: Mapping[str, Path]) -> dict[str, Content]:
    """Return the files of a tokenizer; the runtime opens none without ``tokenizer_config.json``."""
    found = tokenizer_files(files)
    if _TOKENIZER in found:
        found.setdefault(_TOKENIZER_CONFIG, json_content(_ANY_TOKENIZER))
    return found


def _packs(subject: Subject) -> dict[str, Path]:
    """Return the packs of all adapters."""
    packs = {name: each.pack for name, each in subject.manifest.adapters.items()}
    return {
        f"adapters/{name}.onnx_adapter": resolve_inside(subject.export_dir, pack.onnx_adapter)
        for name, pack in packs.items()
        if pack is not None
    }


def _notes_on_texts(
    subject: Subject, placed: Mapping[str, Content], config: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what a user should know of the tokenizer, the dtype and batches.

    The runtime pads a prompt on the right, so that the padding lies between prompt and answer.
    """
    if _TOKENIZER not in placed:
        yield f"the export has no {_TOKENIZER}: the runtime takes token ids, but no texts"
    if subject.manifest.base.dtype == "bfloat16":
        yield "the graph is bfloat16, which the runtime computes on GPUs only"
    if subject.manifest.base.logits == "last":
        yield (
            "the graph returns the logits of the last position only (--logits last): give the "
            "prompts of one batch the same number of tokens"
        )
    elif _counts_padding(text_settings(config)):
        yield (
            "padding changes the answers of this model (a sliding window, or ALiBi): give the "
            "prompts of one batch the same number of tokens"
        )


def _counts_padding(config: Mapping[str, Any]) -> bool:
    """Whether attention counts padding as distance: windows do, and the ALiBi of MPT."""
    window = config.get("sliding_window") and config.get("use_sliding_window", True)
    return bool(window) or config.get("model_type") in {"gpt_neo", "mpt"}


def _notes_on_packs(subject: Subject) -> tuple[str, ...]:
    """Return which adapters have a tokenizer of their own, where one directory holds several."""
    if subject.name != SWAPPABLE_GRAPH:
        return ()
    own = [name for name, each in subject.manifest.adapters.items() if each.companions is not None]
    return tuple(
        f"adapter {name!r} has its own tokenizer or settings, but the directory has those of the "
        f"base; --adapter {name} writes a directory with its own"
        for name in own
    )
