"""Readers of graph templates and of the graph cache: a config against tables, and their files."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from lora_export.core.errors import LoraExportError
from lora_export.graph import graph_cache
from lora_export.graph.cached_requests import Request
from lora_export.graph.graph_export import settings_of
from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.tasks import TASKS
from lora_export.graph.templates import shipped, witness
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import NoTemplateError, match
from lora_export.weights.checkpoint import read_config
from tools.reader_fuzz.formats import zip_mutator
from tools.reader_fuzz.mutate_bytes import mutate_bytes
from tools.reader_fuzz.mutate_proto import mutate_proto
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.reader_fuzz.reader import Files

__all__ = ["SHIPPED_GRAPHS"]

_CONFIG: Final = "config.json"
_ERRORS: Final = (LoraExportError, NoTemplateError)
_TASKS: Final = {"bert": "text-classification", "llama": "text-generation"}
_OPSET: Final = 20


def _witnesses() -> dict[str, dict[str, Any]]:
    """Return a row of the index with its witness for each model type."""
    rows, tables = shipped.read_index()["templates"], witness.read_witnesses()
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["dtype"] == "float32" and row["sentence"] is None:
            found.setdefault(row["model_type"], {"row": row, "table": tables[row["file"]]})
    return found


def _configs(_fixed: Path) -> Target:
    """Return the matching of a config with every family's table."""
    seeds: tuple[Files, ...] = tuple(
        {_CONFIG: json.dumps({**each["table"]["config"], "model_type": kind}).encode()}
        for kind, each in _witnesses().items()
    )

    def read(folder: Path) -> None:
        settings = settings_of(read_config(folder))
        family = FAMILIES.get(str(settings.get("model_type")))
        if family is None:
            msg = "no family"
            raise NoTemplateError(msg)
        match(family, settings)

    return Target(seeds, {_CONFIG: (mutate_json,)}, read)


def _graph_of(kind: str, _fixed: Path) -> Target:
    """Return the graph that a template makes for a config."""
    task = TASKS[_TASKS[kind]]
    row = next(
        row for row in shipped.read_index()["templates"]
        if (row["model_type"], row["task"], row["dtype"]) == (kind, task.name, "float32")
    )  # fmt: skip
    config = witness.read_witnesses()[row["file"]]["config"]

    def read(folder: Path) -> None:
        shipped.from_template(
            settings_of(read_config(folder)), task, "float32", _OPSET, Choices(),
            sentence=None, untied=False,
        )  # fmt: skip

    seed = {_CONFIG: json.dumps({**config, "model_type": kind}).encode()}
    return Target((seed,), {_CONFIG: (mutate_json,)}, read)


def _files(_fixed: Path) -> Target:
    """Return the reader of the package's own files, which a disk may damage."""
    found = _witnesses()["bert"]
    row = {**found["row"], "file": "one.zip"}
    index = {"frequencies": shipped.read_index()["frequencies"], "templates": [row]}
    seed = {
        shipped.INDEX: json.dumps(index).encode(),
        witness.WITNESSES: json.dumps({"one.zip": found["table"]}).encode(),
        "one.zip": (shipped.DATA / found["row"]["file"]).read_bytes(),
    }

    def read(folder: Path) -> None:
        with mock.patch.object(shipped, "DATA", folder):
            shipped.read_index.cache_clear()
            try:
                tables = witness.read_witnesses()
                for each in shipped.read_index()["templates"]:
                    if each["file"] in tables:
                        witness.open_witness(each, tables[each["file"]])
            finally:
                shipped.read_index.cache_clear()

    packed = zip_mutator({".json": (mutate_json,), ".onnx": (mutate_proto,)})
    tables = dict.fromkeys((shipped.INDEX, witness.WITNESSES), (mutate_json,))
    return Target((seed,), {**tables, "one.zip": (packed, mutate_bytes)}, read)


def _cache(fixed: Path) -> Target:
    """Return the reader of an entry of the graph cache; one that is damaged is none."""
    row = _witnesses()["bert"]
    request = Request(row["table"]["config"], row["row"]["task"], "float32", _OPSET, {})
    template = shipped.instance_of(row["row"], match(FAMILIES["bert"], row["table"]["config"]))
    with mock.patch.dict(os.environ, LORA_EXPORT_CACHE=str(fixed)):
        graph_cache.store(request, template)
    (entry,) = (fixed / "graphs").glob("*/*")
    names = ("graph.json", "graph.onnx")
    seed = {name: (entry / name).read_bytes() for name in names}

    def read(folder: Path) -> None:
        for name in names:
            (folder / name).replace(entry / name)
        with mock.patch.dict(os.environ, LORA_EXPORT_CACHE=str(fixed)):
            for traceable in (True, False):
                graph_cache.load(request, traceable=traceable)
            graph_cache.missed(request)
            if graph_cache.load(request, traceable=True) is None:
                msg = "it is not cached"
                raise NoTemplateError(msg)

    return Target((seed,), {"graph.json": (mutate_json,), "graph.onnx": (mutate_proto,)}, read)


SHIPPED_GRAPHS: Final[Mapping[str, Reader]] = {
    "template-config": Reader(_configs, errors=_ERRORS),
    **{
        f"template-{kind}": Reader(partial(_graph_of, kind), errors=_ERRORS, slowness=20)
        for kind in _TASKS
    },
    "template-files": Reader(_files, errors=_ERRORS, slowness=40),
    "graph-cache": Reader(_cache, errors=_ERRORS, slowness=10),
}
"""The readers of templates and cached graphs."""
