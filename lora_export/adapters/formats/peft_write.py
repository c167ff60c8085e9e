"""Any canonical adapter as PEFT's folder: ``adapter_config.json``, ``adapter_model.safetensors``.

PEFT resolves ranks and scales by regular expressions over module names. Here the commonest rank r
and alpha stand for all, and each module that differs has a pattern of its own, ``^`` and its
escaped path, which matches nothing else. ``alpha = s·r``, so that PEFT's ``alpha / r`` is s again.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.attention_modules import IN_PROJECTION, OUT_PROJECTION_TIMES, attention_of
from lora_export.adapters.delta import read_finite
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import UnsupportedError
from lora_export.core.files import write_synced
from lora_export.core.safetensors_write import write_tensors
from lora_export.core.tensors import MemoryTensor, read_all

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from lora_export.adapters.canonical import Adapter, LowRank, Rows
    from lora_export.core.tensors import Tensor

__all__ = ["metadata_of", "write_peft"]

_WRAPPER: Final = "base_model.model."
_HEADS: Final = ("classifier", "score")
"""Modules that PEFT itself saves whole for classification: their parts cannot be named again."""

_CLASSIFICATION: Final = frozenset({"SEQ_CLS", "TOKEN_CLS"})


@dataclass
class _Contents:
    """The contents of the two files, while they are collected."""

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def write_peft(adapter: Adapter, folder: Path, *, conv1d: bool = False) -> None:
    """Write `adapter` into `folder`, a private one that exists.

    Args:
        adapter: The adapter; tensors keep their dtype, and are read as they are written.
        folder: Where to.
        conv1d: Whether the base's layers are GPT-2's ``Conv1D`` (``fan_in_fan_out``), where the
            adapter's own config does not say so.

    Raises:
        UnsupportedError: PEFT's format cannot hold it: magnitudes on some modules only, no update.
        AdapterError: A tensor that has to be computed holds NaN or infinity.
        StorageError: The disk refuses.
    """
    if not adapter.low_rank:
        msg = f"adapter {adapter.source!r} has no low-rank update; PEFT cannot load such a file"
        raise UnsupportedError(msg, hint="Copy its saved parameters into the base checkpoint.")
    contents = _Contents(_settings(adapter, conv1d=conv1d))
    _put_low_rank(adapter, contents)
    _put_added(adapter, contents)
    _put_saved(adapter, contents)
    _put_rows(adapter, contents)
    write_tensors(folder / "adapter_model.safetensors", contents.tensors, metadata_of(adapter))
    text = json.dumps(contents.config, indent=2, sort_keys=True)
    write_synced(folder / "adapter_config.json", text.encode() + b"\n")


def metadata_of(adapter: Adapter) -> dict[str, str]:
    """Return the header's metadata: the base that the adapter is for, where known."""
    known = adapter.known_base
    return {"format": "pt", **(known.metadata() if known is not None else {})}


def _settings(adapter: Adapter, *, conv1d: bool) -> dict[str, Any]:
    """Return the settings that follow from names, ranks and scales."""
    attentions = {u.module for u in adapter.low_rank if u.name == IN_PROJECTION}
    _require_one_rank(adapter, attentions)
    named = [u for u in adapter.low_rank if attention_of(u.module, attentions) is None]
    ranks = {_path(update): update.rank for update in named}
    alphas = {_path(update): _alpha(update) for update in named}
    bare = sorted(_path(update) for update in named if _path(update) != update.module)
    r, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": adapter.base_name,
        "inference_mode": True,
        "r": r,
        "lora_alpha": alpha,
        "rank_pattern": {_only(name): value for name, value in ranks.items() if value != r},
        "alpha_pattern": {_only(name): value for name, value in alphas.items() if value != alpha},
        "target_modules": sorted(ranks.keys() - set(bare)),
        **({"target_parameters": bare} if bare else {}),
        "modules_to_save": None,
        "fan_in_fan_out": conv1d or bool(adapter.config.get("fan_in_fan_out")),
        "bias": "none",
        "lora_bias": bool(adapter.added),
        "lora_dropout": 0.0,
        "use_dora": any(update.magnitude is not None for update in adapter.low_rank),
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _commonest(values: dict[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _path(update: LowRank) -> str:
    """Return its name in PEFT's settings: the module, or the parameter that is its target."""
    return update.module if update.name in {None, IN_PROJECTION} else update.parameter


def _require_one_rank(adapter: Adapter, attentions: AbstractSet[str]) -> None:
    """Require that both projections of an attention have the one rank and scale that PEFT gives."""
    inner = {update.module: update for update in adapter.low_rank if update.module in attentions}
    for update in adapter.low_rank:
        owner = inner.get(attention_of(update.module, attentions) or "")
        if owner is None:
            continue
        scale = owner.scale * OUT_PROJECTION_TIMES
        if (owner.rank, scale) != (update.rank, update.scale):
            msg = (
                f"adapter {adapter.source!r} has rank {owner.rank} and scale {owner.scale:g} for "
                f"{owner.parameter!r}, {update.rank} and {update.scale:g} for {update.module!r}"
            )
            raise UnsupportedError(
                msg,
                hint="PEFT has one rank for both, and twice the scale for the second.",
            )


def _only(module: str) -> str:
    r"""Return the pattern that PEFT's ``(.*\\.)?(pattern)$`` matches with this module alone."""
    return f"^{re.escape(module)}"


def _alpha(update: LowRank) -> float | int:
    """Return alpha such that ``alpha / r`` is the scale, to the last bit where there is one."""
    near = update.scale * update.rank
    candidates = (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf))
    exact = next((each for each in candidates if each / update.rank == update.scale), near)
    return int(exact) if exact.is_integer() and abs(exact) < 1 << 53 else exact


def _put_low_rank(adapter: Adapter, contents: _Contents) -> None:
    wrappers = Counter(update.module for update in adapter.low_rank)
    attentions = {u.module for u in adapter.low_rank if u.name == IN_PROJECTION}
    for update in adapter.low_rank:  # of the parameters of one module, the first is innermost
        wrappers[update.module] -= 1
        nested = ".base_layer" * wrappers[update.module]
        module = update.module
        if (owner := attention_of(module, attentions)) is not None:
            module = f"{owner}.base_layer{module.removeprefix(owner)}"
        stem = f"{_WRAPPER}{module}{nested}.lora_"
        if update.embedding:
            contents.tensors[f"{stem}embedding_A"] = update.a
            contents.tensors[f"{stem}embedding_B"] = update.b
        else:
            contents.tensors[f"{stem}A.weight"] = update.a
            contents.tensors[f"{stem}B.weight"] = update.b
        if update.magnitude is not None:
            contents.tensors[f"{stem}magnitude_vector"] = update.magnitude
        elif contents.config["use_dora"]:
            msg = f"adapter {adapter.source!r} has a magnitude on some modules only"
            raise UnsupportedError(msg, hint=f"{update.module!r} has none; PEFT needs one on each.")


def _put_added(adapter: Adapter, contents: _Contents) -> None:
    """Store ``b + s·β`` as a bias on B, which PEFT multiplies by the module's scale again."""
    scales = {update.module: update.scale for update in adapter.low_rank}
    for each in adapter.added:
        module, _, kind = each.parameter.rpartition(".")
        if kind != "bias" or not scales.get(module):
            msg = f"PEFT cannot hold an addition to {each.parameter!r}"
            raise UnsupportedError(msg, hint="It holds biases of modules with a low-rank update.")
        values = read_finite(each.tensor) * (each.scale / scales[module])
        key = f"{_WRAPPER}{module}.lora_B.bias"
        contents.tensors[key] = MemoryTensor(key, DTYPES["float32"], values.astype("float32"))


def _put_saved(adapter: Adapter, contents: _Contents) -> None:
    """Store whole modules under ``modules_to_save``, lone biases under ``bias``."""
    named = list(adapter.config.get("modules_to_save") or ())
    targets = set(contents.config["target_modules"])
    chosen: set[str] = set()
    trained_bias = adapter.config.get("bias", "none")
    for each in adapter.saved:
        module, _, kind = each.parameter.rpartition(".")
        owner = next((name for name in named if _is_part(module, name)), None)
        lone = kind == "bias" and not any(s.parameter == f"{module}.weight" for s in adapter.saved)
        if owner is not None:
            chosen.add(owner)
        elif lone or (kind == "bias" and trained_bias != "none"):
            contents.config["bias"] = "all"
        elif module not in targets:  # a target's own weight is loaded without being named
            chosen.add(_top_head(adapter, module))
        part = f"{module}.base_layer" if module in targets else module
        contents.tensors[f"{_WRAPPER}{part}.{kind}"] = each.tensor
    if chosen:
        contents.config["modules_to_save"] = sorted(chosen)


def _is_part(module: str, name: str) -> bool:
    """Whether `module` is the one that ``modules_to_save`` calls `name`, or lies below it."""
    return f".{name}." in f".{module}."


def _top_head(adapter: Adapter, module: str) -> str:
    top = module.partition(".")[0]
    classifies = adapter.task_type in _CLASSIFICATION
    return top if classifies and top in _HEADS else module


def _put_rows(adapter: Adapter, contents: _Contents) -> None:
    """Write trained token rows, and the setting under which PEFT finds them again.

    Which tied weights share rows follows in PEFT from the keys of the setting as they were written:
    one key for two embeddings is not the same as one key for each.

    Raises:
        UnsupportedError: Several embeddings have rows, and the keys they had are not known.
    """
    rows = {each.parameter.removesuffix(".weight"): each for each in adapter.rows}
    keys = _keys_of_rows(adapter, rows) if len(rows) > 1 else {module: module for module in rows}
    own = _own_setting(adapter)
    setting: dict[str, list[int]] = {}
    for module, each in rows.items():
        listed = list(own[keys[module]]) if len(rows) > 1 else list(each.indices)
        setting[keys[module]] = listed
        name = f"{_WRAPPER}{module}.token_adapter.trainable_tokens_delta"
        contents.tensors[name] = _in_order(each, listed)
    if setting:
        contents.config["trainable_token_indices"] = setting


def _own_setting(adapter: Adapter) -> Mapping[str, list[int]]:
    """Return the rows by key that the adapter's config lists; empty where it lists no keys."""
    own = adapter.config.get("trainable_token_indices")
    return own if isinstance(own, dict) else {}


def _in_order(rows: Rows, listed: list[int]) -> Tensor:
    """Return the rows in the order of the list; `Rows` has them in ascending order."""
    if listed == list(rows.indices):
        return rows.tensor
    order = [rows.indices.index(each) for each in listed]
    return MemoryTensor(rows.tensor.name, rows.tensor.dtype, read_all(rows.tensor)[order])


def _keys_of_rows(adapter: Adapter, rows: Mapping[str, Rows]) -> dict[str, str]:
    """Return the key of the adapter's own setting for each module with rows.

    Raises:
        UnsupportedError: The setting does not name these modules, and no other.
    """
    own = _own_setting(adapter)
    keys: dict[str, str] = {}
    for module, each in rows.items():
        found = [key for key in own if module == key or module.endswith(f".{key}")]
        if len(found) == 1 and sorted(own[found[0]]) == list(each.indices):
            keys[module] = found[0]
    if keys.keys() == rows.keys() and set(keys.values()) == own.keys():
        return keys
    msg = (
        f"adapter {adapter.source!r} has token rows of {', '.join(map(repr, sorted(rows)))}, "
        "and its trainable_token_indices does not name them one by one"
    )
    raise UnsupportedError(
        msg, hint="PEFT would read such a file differently. Merge the adapter instead."
    )
