"""Readers of what belongs to exports: companions in layouts, baselines, Triton repositories."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.numpy import save

from lora_export.adapters.formats.detect import read_adapter
from lora_export.core.errors import InputError
from lora_export.exports.padding import as_exported
from lora_export.latency.gate import Baseline, read_baseline
from lora_export.layouts.companion_tables import companion_table, generation_table, tokenizer_files
from lora_export.triton.check_repository import check_repository
from lora_export.triton.model_config import FINGERPRINT, TEXT
from lora_export.triton.token_inputs import ADAPTERS, text_of
from lora_export.weights.checkpoint import Checkpoint
from lora_export.weights.companion_files import companion_files
from lora_export.weights.own_companions import own_companions
from tools.reader_fuzz.examples import example_of
from tools.reader_fuzz.mutate_bytes import mutate_bytes
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target
from tools.reader_fuzz.text_examples import COMPANIONS, SETTINGS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from random import Random

    from tools.reader_fuzz.reader import Mutator

__all__ = ["EXPORTS"]

_JSON: Final[tuple[Mutator, ...]] = (mutate_json,)
_TEMPLATE: Final = "chat_template.jinja"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _companion_bytes() -> dict[str, bytes]:
    return {name: _json(table) for name, table in COMPANIONS.items()} | {_TEMPLATE: b"{{ x }}"}


def _layout(_fixed: Path) -> Target:
    """Return the reader of the companions of an export, as layouts take them."""

    def read(folder: Path) -> None:
        files = companion_files(folder)
        tokenizer_files(files)
        companion_table(files, "config.json")
        generation_table(files)
        text_of(files)

    sentence = {"sentence_bert_config.json": b'{"max_seq_length": 128}'}
    seed = {**_companion_bytes(), **sentence}
    tables = dict.fromkeys((*COMPANIONS, *sentence), _JSON)
    return Target((seed,), {**tables, _TEMPLATE: (mutate_bytes,)}, read)


def _own(fixed: Path) -> Target:
    """Return the reader of the companions that an adapter brings, beside those of its base."""
    base = fixed / "base"
    (base / "hf").mkdir(parents=True)
    for name, data in _companion_bytes().items():
        (base / "hf" / name).write_bytes(data)
    a, b = np.ones((2, 8), np.float32), np.ones((8, 2), np.float32)
    stem = "base_model.model.layers.0.q_proj.lora_"
    tensors = save({f"{stem}A.weight": a, f"{stem}B.weight": b})
    settings = {**SETTINGS, "modules_to_save": None}
    files = companion_files(base / "hf")

    def read(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_bytes(tensors)
        (folder / "adapter_config.json").write_bytes(_json(settings))
        adapter = read_adapter(folder, name="one", source=str(folder))
        own_companions([adapter], files, rows=10)
        (folder / "hf").mkdir()
        (folder / "config.json").rename(folder / "hf" / "config.json")
        as_exported(Checkpoint("one", folder, {}, {}, ()), folder)

    seed = {name: data.replace(b'"a"', b'"c"') for name, data in _companion_bytes().items()}
    return Target((seed,), {**dict.fromkeys(COMPANIONS, _JSON), _TEMPLATE: (mutate_bytes,)}, read)


def _baseline(_fixed: Path) -> Target:
    row = {"cell": "c", "subject": "a:one", "over": "a:base", "ratio": 1.0, "interval": [0.9, 1.1]}
    table = {**example_of(Baseline), "rows": [row]}

    def read(folder: Path) -> None:
        found = read_baseline(folder / "x.json")
        found.find("c", "a:one", "a:base")
        found.difference(found.machine)

    return Target(({"x.json": _json(table)},), {"x.json": _JSON}, read)


_CONFIG: Final = """name: "m"
backend: "python"
max_batch_size: 8
input [ { name: "%s" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] } ]
parameters { key: "%s" value: { string_value: "%s" } }
parameters { key: "%s" value: { string_value: "%s" } }
parameters { key: "multiple" value: { string_value: "1" } }
""" + "".join(
    f'parameters {{ key: "{key}" value: {{ string_value: "1" }} }}\n'
    for key in ("max_length", "pad_id", "pad_type_id")
)
_LINE: Final = {"file": "tokenizer-one.json", "max_length": "1", "pad_id": "0",
                "pad_type_id": "0"}  # fmt: skip


def _config(lines: str) -> bytes:
    quoted = lines.replace("\\", "\\\\").replace('"', '\\"')
    return (_CONFIG % (TEXT, FINGERPRINT, "0" * 64, ADAPTERS, quoted)).encode()


def _mutate_lines(chance: Random, _data: bytes) -> bytes:
    """Return a configuration whose table of adapters has other values."""
    lines = mutate_json(chance, _json({"one": _LINE})).decode("utf-8", "replace")
    return _config(lines.replace("\n", " "))


def _triton(_fixed: Path) -> Target:
    """Return the check of a model that makes tokens of texts; a problem that it finds refuses."""
    places = {"config.pbtxt": "m/config.pbtxt", "model.py": "m/1/model.py",
              "tokens.py": "m/1/tokens.py", "tokenizer.json": "m/1/tokenizer.json",
              "tokenizer-one.json": "m/1/tokenizer-one.json"}  # fmt: skip

    def read(folder: Path) -> None:
        (folder / "r" / "m" / "1").mkdir(parents=True)
        for name, place in places.items():
            (folder / name).rename(folder / "r" / place)
        if any(check_repository(folder / "r").values()):
            msg = "the check finds a problem"
            raise InputError(msg)

    seed = {
        "config.pbtxt": _config(json.dumps({"one": _LINE})),
        "model.py": b"from .tokens import f\n\nclass TritonPythonModel:\n    pass\n",
        "tokens.py": b"def f():\n    return 1\n", "tokenizer.json": b"{}",
        "tokenizer-one.json": b"{}",
    }  # fmt: skip
    return Target(
        (seed,),
        {"config.pbtxt": (_mutate_lines, mutate_bytes), "model.py": (mutate_bytes,),
         "tokens.py": (mutate_bytes,), "tokenizer.json": _JSON, "tokenizer-one.json": _JSON},
        read,
    )  # fmt: skip


EXPORTS: Final[Mapping[str, Reader]] = {
    "layout-companions": Reader(_layout, slowness=2),
    "own-companions": Reader(_own, slowness=8),
    "baseline": Reader(_baseline),
    "triton-repository": Reader(_triton, slowness=2),
}
"""The readers of what belongs to exports."""
