"""The tensors of a PEFT adapter of another method than LoRA, sorted by module and given to it.

    <module>.<name>[.NAME]               hada_w1_a, ia3_l, …
    <module>.<name>[.NAME].weight        oft_R.weight, ln_tuning_layers.bias, …
    base_model.<name>[.NAME]             what all modules share: vera_A

NAME is the adapter's own, which ``save_pretrained`` leaves out. All other tensors are those of any
adapter (``modules_to_save``, trained biases): `peft_tensors` sorts them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_export.adapters.canonical import Added, Computed, LowRank, Rows, Saved
from lora_export.adapters.formats.peft_keys import parse_keys
from lora_export.adapters.formats.peft_scale import require_affordable
from lora_export.adapters.formats.peft_tensors import sort_tensors
from lora_export.adapters.methods.interface import AdaptedModule
from lora_export.adapters.methods.table import METHODS
from lora_export.adapters.targeting import target_rule
from lora_export.adapters.wrappers import PEFT_PREFIX, unwrap
from lora_export.core.errors import AdapterError
from lora_export.core.tensors import same_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_export.adapters.canonical import Item
    from lora_export.adapters.formats.peft_tensors import Sorted
    from lora_export.adapters.methods.interface import Method
    from lora_export.core.tensors import Tensor

__all__ = ["parse_key", "sort_method"]


@dataclass(frozen=True)
class Key:
    """A tensor's name, parsed.

    Attributes:
        module: Its module; None where all modules share it.
        name: Its name there.
        adapter: The adapter's own name, where the key has it.
        as_saved: Whether the key is the one that ``save_pretrained`` writes.
    """

    module: str | None
    name: str
    adapter: str | None
    as_saved: bool


def sort_method(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[Sorted, tuple[str, ...]]:
    """Sort the tensors of an adapter whose ``peft_type`` is one of `METHODS`.

    The second value names the modules that the method changes.

    Args:
        tensors: What the adapter's file holds, by key.
        config: The adapter's config.
        source: The adapter, for messages.

    Raises:
        AdapterError: A tensor is missing, shapes or settings contradict the tensors.
        UnsupportedError: A key has an unknown kind.
    """
    kind = config["peft_type"]
    method = METHODS[kind]
    modules: dict[str, dict[str, Tensor]] = {}
    shared: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    repeated: list[str] = []
    keys: list[Key] = []
    for key in sorted(tensors):
        found = parse_key(key, method)
        if found is None:
            rest[key] = tensors[key]
            continue
        keys.append(found)
        if not method.by_peft:
            _require_floating(tensors[key], source)
        place = shared if found.module is None else modules.setdefault(found.module, {})
        first = place.setdefault(found.name, tensors[key])
        if first is not tensors[key]:
            _require_same(first, tensors[key], source)
            repeated.append(key)
    _require_one(keys, source)
    if not modules:
        msg = f"adapter {source!r} has the peft_type {kind}, and no tensors of it"
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    if kind != "ADALORA":  # its table lists ranks, not modules' expressions
        require_affordable(modules.keys(), config, source)
    if kind == "TRAINABLE_TOKENS":
        repeated += _drop_tied_copies(modules, config, source)
    adapted = [
        AdaptedModule(path, found, shared, config, source, modules)
        for path, found in sorted(modules.items())
    ]
    items = [item for module in adapted for item in method.read(module)]
    _refuse_mixed(rest, kind, source)
    others = sort_tensors(rest, {**config, "rank_pattern": None}, source)
    used = {id(tensor) for item in items for tensor in _stored(item)}
    unused = [tensor.name for module in (*modules.values(), shared) for tensor in module.values()
              if id(tensor) not in used]  # fmt: skip
    result = replace(
        others,
        low_rank=(*others.low_rank, *(each for each in items if isinstance(each, LowRank))),
        saved=(*others.saved, *(each for each in items if isinstance(each, Saved))),
        added=(*others.added, *(each for each in items if isinstance(each, Added))),
        rows=(*others.rows, *(each for each in items if isinstance(each, Rows))),
        computed=tuple(each for each in items if isinstance(each, Computed)),
        repeated=(*others.repeated, *repeated, *unused),
        renamed=others.renamed or any(not each.as_saved for each in keys),
    )
    return result, tuple(modules)


def _drop_tied_copies(
    modules: dict[str, dict[str, Tensor]], config: Mapping[str, Any], source: str
) -> list[str]:
    """Remove modules that hold the rows of a targeted one again; return the names of these rows.

    PEFT gives the modules that are tied to the embedding its rows, and saves them with each; the
    config names the embedding alone.
    """
    targets = target_rule(config, source, modules)
    own = [path for path in modules if targets is None or targets(path)]
    dropped: list[str] = []
    for path in [each for each in modules if each not in own]:
        found = modules[path]
        for other in (modules[each] for each in own):
            same = found.keys() == other.keys()
            if same and all(same_values(found[name], other[name]) for name in found):
                dropped += [tensor.name for tensor in found.values()]
                del modules[path]
                break
    return dropped


def _refuse_mixed(rest: Mapping[str, Tensor], kind: str, source: str) -> None:
    """Raise for tensors of LoRA beside those of the method."""
    for key, found in parse_keys(sorted(rest), source).items():
        if found.kind is not None:
            msg = f"adapter {source!r} has the peft_type {kind} and tensors of LoRA: {key!r}"
            raise AdapterError(msg, hint="The file is damaged, or two adapters were mixed.")


def _stored(item: Item) -> Iterable[Tensor]:
    for tensor in item.tensors:
        yield from getattr(tensor, "sources", (tensor,))


def parse_key(key: str, method: Method) -> Key | None:
    """Return what the key of a tensor says, or None where it is not one of the method's."""
    path = unwrap(key)
    if method.prefix is not None:
        return _with_prefix(key, path, method.prefix)
    for name in sorted(method.shared):
        found = re.fullmatch(rf"(?:base_model\.)?{name}(?:\.(?P<adapter>[^.]+))?", path)
        if found is not None:
            return Key(None, name, found["adapter"], key == f"base_model.{name}")
    for name in sorted(method.names):
        stem, _, leaf = name.partition(".")
        end = rf"\.{leaf}" if leaf else ""
        pattern = rf"(?P<module>.+)\.{stem}(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?{end}"
        found = re.fullmatch(pattern, path)
        if found is not None:
            module = found["module"].replace(".base_layer", "")
            plain = key == f"{PEFT_PREFIX}{module}.{name}"
            return Key(module, name, found["adapter"], plain)
    return None


def _with_prefix(key: str, path: str, prefix: str) -> Key | None:
    """Return what a key of a method that PEFT merges says; the adapter's own name stays in it."""
    found = re.fullmatch(rf"(?:base_model\.)?(?P<name>{prefix}.+)", path)
    if found is not None:
        return Key(None, found["name"], None, key == f"base_model.{found['name']}")
    found = re.fullmatch(rf"(?P<module>.+)\.(?P<name>{prefix}.+)", path)
    if found is None:
        return None
    module = found["module"].replace(".base_layer", "")
    return Key(module, found["name"], None, key == f"{PEFT_PREFIX}{module}.{found['name']}")


def _require_floating(tensor: Tensor, source: str) -> None:
    if not tensor.dtype.floating:
        msg = f"tensor {tensor.name!r} of adapter {source!r} has the dtype {tensor.dtype.name}"
        raise AdapterError(msg, hint="An adapter's tensors are floating-point numbers.")


def _require_same(first: Tensor, second: Tensor, source: str) -> None:
    if not same_values(first, second):
        msg = f"adapter {source!r} holds two tensors for one: {first.name!r} and {second.name!r}"
        raise AdapterError(msg, hint="The file is damaged, or two adapters were mixed.")


def _require_one(keys: Iterable[Key], source: str) -> None:
    """Require that the keys are those of one adapter."""
    names = sorted({each.adapter for each in keys}, key=str)
    if len(names) > 1:
        shown = ", ".join(repr(name) for name in names if name is not None)
        msg = f"adapter {source!r} holds several adapters: {shown}"
        raise AdapterError(msg, hint="Save one: save_pretrained(FOLDER, selected_adapters=[NAME]).")
