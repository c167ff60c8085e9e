"""Readers of texts that users write or copy: recipes, configs, tokenizers, data sets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors.numpy import save

from lora_export.adapters.combine import Combination, combine
from lora_export.adapters.formats.detect import read_adapter
from lora_export.commands.recipe import load_recipe
from lora_export.core.declarations import words_tied
from lora_export.graph.spec import tasks
from lora_export.runtime.text_tokenizer import TextTokenizer
from lora_export.runtime.tokens import first_tokens, read_settings, stop_tokens
from lora_export.verification.datasets.lines import read_lines
from lora_export.weights.checkpoint import read_config
from lora_export.weights.companion_files import companion_files
from lora_export.weights.label_names import named_classes
from lora_export.weights.merged_config import merged_config
from lora_export.weights.pooling_source import sentence_files
from lora_export.weights.positions import long_rope_threshold, longest_text
from lora_export.weights.sentence import read_sentence_head
from lora_export.weights.sentence_head import Pooling
from lora_export.weights.special_tokens import special_ids, with_special_tokens
from tools.reader_fuzz.mutate_bytes import mutate_bytes, with_words
from tools.reader_fuzz.mutate_tables import mutate_json
from tools.reader_fuzz.reader import Reader, Target
from tools.reader_fuzz.text_examples import (
    COMPANIONS,
    CONFIG,
    EXAMPLES,
    MODULES,
    PLAIN,
    POOLING,
    RECIPE,
    SETTINGS,
    TOKENIZER,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from random import Random

    from tools.reader_fuzz.reader import Mutator

__all__ = ["TEXTS"]

_TENSORS: Final = "adapter_model.safetensors"
_JSON: Final[tuple[Mutator, ...]] = (mutate_json,)
_YAML: Final = with_words((
    b"&a ", b"*a", b"<<: ", b"- ", b"? ", b": ", b"!!int ", b"!!float ''", b"!!timestamp x", b"!x ",
    b"!!binary ", b"!!set ", b"!!omap ", b"!!python/name:os", b"2001-99-99", b".inf", b".nan",
    b"0x_", b"1:99:99", b"|\n", b">\n", b"\n", b"  ", b"\t", b"#", b"%YAML 9\n", b"---\n", b"...\n",
    b"'", b'"', b"\\ud800", b"[", b"]", b"{", b"}", b"~", b"=", b"\x00", b"\xff", b"\xef\xbb\xbf",
))  # fmt: skip


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _recipe(_fixed: Path) -> Target:
    seeds = ({"x.yaml": PLAIN}, {"x.yaml": _json(RECIPE)})
    return Target(
        seeds,
        {"x.yaml": (mutate_bytes, _mutate_recipe)},
        lambda folder: load_recipe(folder / "x.yaml", {"scale": {"": 2.0}}),
    )


def _mutate_recipe(chance: Random, data: bytes) -> bytes:
    """Return JSON, which YAML includes, with other values, or YAML with other words."""
    return mutate_json(chance, data) if data.startswith(b"{") else _YAML(chance, data)


def _settings(fixed: Path) -> Target:
    """Return the reader of an adapter's settings; its tensors stay as they are."""
    a, b = np.ones((2, 8), np.float32), np.ones((8, 2), np.float32)
    stem = "base_model.model.layers.0.q_proj.lora_"
    tensors = {f"{stem}A.weight": a, f"{stem}B.weight": b, "base_model.model.head.weight": b}
    (fixed / _TENSORS).write_bytes(save(tensors))

    def read(folder: Path) -> None:
        (folder / _TENSORS).symlink_to(fixed / _TENSORS)
        adapter = read_adapter(folder, name="one", source="one")
        combine([adapter, adapter], Combination("cat"), name="both")

    return Target(({"adapter_config.json": _json(SETTINGS)},), {"adapter_config.json": _JSON}, read)


def _config(_fixed: Path) -> Target:
    """Return the reader of a base's settings, with what is asked of them."""

    def read(folder: Path) -> None:
        config = read_config(folder)
        longest_text(config)
        long_rope_threshold(config)
        named_classes(config)
        words_tied(config)
        merged_config(config, task_type="SEQ_CLS", head_width=2, labels=None, dtype=None)
        tasks.detect(config)

    return Target(({"config.json": _json(CONFIG)},), {"config.json": _JSON}, read)


def _companions(_fixed: Path) -> Target:
    """Return the reader of the tables beside a tokenizer and its special tokens."""

    def read(folder: Path) -> None:
        files = companion_files(folder)
        config, generation = read_settings(files)
        stop_tokens(config, generation)
        first_tokens(config, generation)
        with_special_tokens(config, special_ids(files), generation=True)

    names = dict.fromkeys(COMPANIONS, _JSON)
    return Target(({name: _json(table) for name, table in COMPANIONS.items()},), names, read)


def _tokenizer(_fixed: Path) -> Target:
    def read(folder: Path) -> None:
        tokenizer = TextTokenizer(folder / "tokenizer.json")
        tokenizer.decode(tokenizer.encode(["a b c", "", "ab" * 20])[0].ids)

    return Target(({"tokenizer.json": _json(TOKENIZER)},), {"tokenizer.json": _JSON}, read)


def _pooling(_fixed: Path) -> Target:
    """Return the reader of the modules of sentence-transformers."""

    def read(folder: Path) -> None:
        (folder / "1_Pooling").mkdir()
        (folder / "pooling.json").rename(folder / "1_Pooling" / "config.json")
        read_sentence_head(Pooling(folder))
        sentence_files(Pooling(folder, inner="0_Transformer"))

    seed = {"modules.json": _json(MODULES), "pooling.json": _json(POOLING)}
    return Target((seed,), dict.fromkeys(seed, _JSON), read)


def _data_set(_fixed: Path) -> Target:
    lines = b"\n".join(map(_json, EXAMPLES))
    return Target(
        ({"x.jsonl": lines}, {"x.jsonl": _json(EXAMPLES[0])}),
        {"x.jsonl": (mutate_bytes, _mutate_first)},
        lambda folder: read_lines(folder / "x.jsonl", "an object"),
    )


def _mutate_first(chance: Random, data: bytes) -> bytes:
    """Return lines of which the first has other values."""
    first, _, rest = data.partition(b"\n")
    return mutate_json(chance, first).replace(b"\n", b" ") + b"\n" + rest


TEXTS: Final[Mapping[str, Reader]] = {
    "recipe": Reader(_recipe, slowness=4),
    "adapter-settings": Reader(_settings, slowness=4),
    "base-config": Reader(_config),
    "companions": Reader(_companions, slowness=2),
    "tokenizer": Reader(_tokenizer, slowness=4),
    "pooling": Reader(_pooling),
    "data-set": Reader(_data_set),
}
"""Every reader by its name."""
