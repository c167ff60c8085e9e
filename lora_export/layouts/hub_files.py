"""The files beside a graph, as transformers 4 and libraries of its time read them.

A checkpoint that transformers 5 saved has the same facts in other places: names of tokenizer
classes that version 4 does not have, the further special tokens as a list, the settings of an image
or feature extractor inside ``processor_config.json``. optimum-onnx runs with version 4,
transformers.js reads its files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.graph.spec import tasks
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.layouts.companion_tables import (
    companion_table,
    generation_table,
    json_content,
    model_config,
    tokenizer_files,
)
from lora_export.layouts.tokenizer_config import made_tokenizer_config
from lora_export.weights.companion_files import CONFIG, GENERATION_CONFIG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_export.core.json_file import JsonObject
    from lora_export.layouts.description import Subject
    from lora_export.weights.companion_files import Content

__all__ = ["hub_config", "hub_files", "note_on_tokenizer"]

_PROCESSOR: Final = "processor_config.json"
_PREPROCESSOR: Final = "preprocessor_config.json"
_EXTRACTORS: Final = ("feature_extractor", "image_processor")
"""The sections of `_PROCESSOR` in version 5; version 4 has them in `_PREPROCESSOR`."""
_CODE: Final = "auto_map"
"""Names of classes in a checkpoint's own code, which a directory with a graph does not have."""
_TOKENIZER: Final = "tokenizer.json"
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"


def hub_config(
    subject: Subject, files: Mapping[str, Path], graphs: Mapping[str, bytes]
) -> JsonObject:
    """Return ``config.json`` of an adapter's or the base's task.

    Args:
        subject: An adapter or the base.
        files: Its companions.
        graphs: Its graphs; the last one returns what the task asks for.

    Raises:
        ExportDirectoryError: There is none, or it is damaged.
    """
    task = tasks.by_name(subject.manifest.base.task)
    signature = read_signature(parse_onnx(list(graphs.values())[-1]))
    last = signature.outputs[0].axes[-1:]  # a graph of the user may not say it
    sizes = [size for size in last if isinstance(size, int)]
    width = sizes[0] if task.label_parameters and sizes else None
    config = model_config(subject, files, width)
    config.pop(_CODE, None)
    if task.encoder_decoder:
        config["is_encoder_decoder"] = True
    return config


def hub_files(
    files: Mapping[str, Path], config: Mapping[str, Any], *, complete: bool = False
) -> dict[str, Content]:
    """Return the files that lie beside the graph, by their names.

    Args:
        files: The companions of an adapter or the base.
        config: What ``config.json`` becomes.
        complete: Whether a ``tokenizer.json`` alone gets a ``tokenizer_config.json``.

    Raises:
        ExportDirectoryError: A file is damaged.
    """
    placed: dict[str, Content] = {**tokenizer_files(files), CONFIG: json_content(config)}
    if complete and _TOKENIZER in files and _TOKENIZER_CONFIG not in files:
        made = made_tokenizer_config(companion_table(files, _TOKENIZER), config)
        placed[_TOKENIZER_CONFIG] = json_content(made)
    if generation := generation_table(files):
        placed[GENERATION_CONFIG] = json_content(generation)
    if _PREPROCESSOR in files:
        placed[_PREPROCESSOR] = files[_PREPROCESSOR]
    if _PROCESSOR in files:
        placed |= _processor(companion_table(files, _PROCESSOR), placed)
    return placed


def _processor(table: JsonObject, placed: Mapping[str, Content]) -> dict[str, Content]:
    """Return the settings of a processor in the two files that version 4 reads."""
    found: dict[str, Content] = {}
    inner = [table[name] for name in _EXTRACTORS if isinstance(table.get(name), dict)]
    if inner and _PREPROCESSOR not in placed:
        name = table.get("processor_class")
        own = {"processor_class": name} if isinstance(name, str) else {}
        found[_PREPROCESSOR] = json_content({**own, **inner[0]})
    kept = {key: value for key, value in table.items() if not isinstance(value, dict)}
    return {**found, _PROCESSOR: json_content(kept)}


def note_on_tokenizer(subject: Subject, placed: Mapping[str, Content]) -> tuple[str, ...]:
    """Return a note where a task reads text and there is no ``tokenizer.json``."""
    task = tasks.by_name(subject.manifest.base.task)
    if "input_ids" not in task.inputs or _TOKENIZER in placed:
        return ()
    what = f"there is no {_TOKENIZER} for {subject.name!r}"
    return (f"{what}: texts have to be made into ids elsewhere",)
