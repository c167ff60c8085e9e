"""The tensors of a PEFT adapter sorted by what they do; nothing is left over.

<module>.lora_A.weight, .lora_B.weight            factors ``[r, in]``, ``[out, r]``; convolutions
                                                  have the kernel's axes behind
<module>.lora_embedding_A, .lora_embedding_B      factors ``[r, vocabulary]``, ``[width, r]``
<module>.lora_magnitude_vector[.weight]           DoRA's m
<module>.lora_B.bias                              a bias on B (``lora_bias``): ``b = b0 + s·bias``
<module>.token_adapter.trainable_tokens_delta     rows of an embedding, replaced
<module>.token_adapter.base_layer.weight          the embedding whose rows they replace, whole
<module>[.base_layer…].lora_A.weight, …           of a parameter that the config names: A
                                                  ``[E·r, in]``, B ``[out, r·E]``; `peft_parameters`
anything else                                     a parameter that is carried whole

`peft_keys` takes wrappers and the adapter's own name out of the keys first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.adapters.attention_modules import OUT_PROJECTION_TIMES, attention_of
from lora_export.adapters.canonical import Added, LowRank, Rows, Saved
from lora_export.adapters.formats.peft_keys import parse_keys
from lora_export.adapters.formats.peft_parameters import parameter_names, split_wrappers
from lora_export.adapters.formats.peft_scale import rank_by_config, require_affordable, scale_of
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.shown_value import shown
from lora_export.core.tensors import MemoryTensor, read_all, same_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.adapters.canonical import Computed
    from lora_export.core.tensors import Tensor

__all__ = ["Sorted", "sort_tensors"]

_WRAPPERS: Final = re.compile(r"\.(?:(?:token_adapter\.)?base_layer|modules_to_save)\.")
"""What PEFT's layers add to the path of a parameter."""

_DAMAGED: Final = "The adapter is damaged: train or copy it again."
_EMPTY: Final = (
    "DeepSpeed's ZeRO-3 saves empty tensors where the parameters are not gathered first: save it "
    "with the trainer's save_model, or convert its checkpoint with zero_to_fp32.py."
)
_FACTORS: Final = ("A.weight", "B.weight")
_EMBEDDING: Final = ("embedding_A", "embedding_B")
_BIAS: Final = "B.bias"
_BIAS_BELOW_ROWS: Final = ".token_adapter.base_layer.bias"
_MAGNITUDE: Final = "magnitude_vector"
_TOKENS: Final = "trainable_tokens_delta"


@dataclass(frozen=True)
class Sorted:
    """An adapter's tensors, by what they do; see `lora_export.adapters.canonical.Adapter`."""

    low_rank: tuple[LowRank, ...]
    saved: tuple[Saved, ...]
    added: tuple[Added, ...]
    rows: tuple[Rows, ...]
    repeated: tuple[str, ...]
    renamed: bool = False
    computed: tuple[Computed, ...] = ()


def sort_tensors(tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str) -> Sorted:
    """Sort `tensors`.

    Args:
        tensors: What the adapter's file holds, by key.
        config: The adapter's config.
        source: The adapter, for messages.

    Raises:
        AdapterError: A part lacks its partner, shapes or settings contradict the tensors.
        UnsupportedError: A key has an unknown kind.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    repeated: list[str] = []
    bare = bool(config.get("target_parameters"))
    keys = parse_keys(sorted(tensors), source)
    for key, found in keys.items():
        tensor = tensors[key]
        if not tensor.dtype.floating:
            msg = f"tensor {key!r} of adapter {source!r} has the dtype {tensor.dtype.name}"
            raise AdapterError(msg, hint="An adapter's tensors are floating-point numbers.")
        path, kind = found.path, found.kind
        if found.module is not None and kind is not None:
            module = found.module if bare else found.module.replace(".base_layer", "")
            first = parts.setdefault(module, {}).setdefault(kind, tensor)
            if first is not tensor:
                if not same_values(first, tensor):
                    msg = f"adapter {source!r} holds two tensors for {kind} of {module!r}"
                    raise AdapterError(msg, hint="The file is damaged, or two adapters were mixed.")
                repeated.append(key)
        elif path.endswith(_BIAS_BELOW_ROWS):
            msg = (
                f"adapter {source!r} trains token rows of {path.removesuffix(_BIAS_BELOW_ROWS)!r}, "
                "which has a bias: PEFT's layer runs it without the bias"
            )
            raise UnsupportedError(
                msg, hint="Train the embedding whole (modules_to_save), or untie the head."
            )
        elif _is_unknown(_WRAPPERS.sub(".", path)):
            msg = f"tensor {key!r} of adapter {source!r} has an unknown kind"
            raise UnsupportedError(
                msg, hint="It belongs to a variant of LoRA that is not supported."
            )
        elif ".original_module." in path:  # the base's own, for PEFT with its adapters disabled
            repeated.append(key)
        else:
            parameter = _WRAPPERS.sub(".", path)
            if parameter in saved:
                _refuse_contradiction(saved[parameter], tensor, source)
                repeated.append(key)
            else:
                saved[parameter] = tensor
    copied = tuple(config.get("modules_to_save") or ())
    whole = tuple(
        Saved(name, tensor, in_place=not _in_copied_module(name, copied))
        for name, tensor in saved.items()
    )
    result = _by_module(parts, whole, tuple(repeated), config, source)
    return replace(result, renamed=any(not each.as_saved for each in keys.values()))


def _in_copied_module(parameter: str, modules: tuple[str, ...]) -> bool:
    """Whether PEFT keeps a copy of the parameter's module: one of ``modules_to_save``."""
    path = parameter.rpartition(".")[0]
    while path:
        if path.endswith(modules):
            return True
        path = path.rpartition(".")[0]
    return False


def _is_unknown(path: str) -> bool:
    """Whether a parameter belongs to a layer of PEFT, and not to the model."""
    return "lora_" in path.rpartition(".")[2] or ".lora_" in path or "token_adapter" in path


def _by_module(
    parts: Mapping[str, Mapping[str, Tensor]],
    saved: tuple[Saved, ...],
    repeated: tuple[str, ...],
    config: Mapping[str, Any],
    source: str,
) -> Sorted:
    require_affordable(parts.keys(), config, source)
    low_rank: list[LowRank] = []
    added: list[Added] = []
    rows: list[Rows] = []
    for module, name, kinds in _named(parts, config, source):
        if _TOKENS in kinds:
            rows.append(_rows(module, kinds[_TOKENS], _row_list(module, parts, config), source))
        if not kinds.keys() - {_TOKENS}:
            continue
        attention = attention_of(module, parts)
        update = _low_rank(module, name, kinds, config, source, named_as=attention or module)
        if attention is not None:
            update = replace(update, scale=update.scale * OUT_PROJECTION_TIMES)
        low_rank.append(update)
        if _BIAS in kinds:
            added.append(Added(f"{module}.bias", kinds[_BIAS], update.scale))
    if config.get("trainable_token_indices") and not rows:
        msg = f"adapter {source!r} has no rows, but its config says trainable_token_indices"
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    return Sorted(tuple(low_rank), saved, tuple(added), tuple(rows), repeated)


def _named(
    parts: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], source: str
) -> Iterator[tuple[str, str | None, Mapping[str, Tensor]]]:
    """Yield each module, the name of its parameter where the config names it, and its tensors."""
    modules: dict[str, dict[int, Mapping[str, Tensor]]] = {}
    for path, kinds in parts.items():
        module, depth = split_wrappers(path)
        modules.setdefault(module, {})[depth] = kinds
    for module, wrappers in modules.items():
        low_rank = {depth for depth, kinds in wrappers.items() if kinds.keys() - {_TOKENS}}
        names = parameter_names(module, low_rank, config, source) if low_rank else {}
        if not names and len(wrappers) > 1:
            msg = f"adapter {source!r} holds two tensors for one part of {module!r}"
            raise AdapterError(msg, hint="The file is damaged, or two adapters were mixed.")
        for depth, kinds in sorted(wrappers.items(), reverse=True):  # innermost first
            yield module, names.get(depth), kinds


def _refuse_contradiction(first: Tensor, second: Tensor, source: str) -> None:
    """Require that a parameter which the file holds twice (``bias: all``) has one value."""
    if not same_values(first, second):
        msg = f"{first.name!r} and {second.name!r} of adapter {source!r} contradict each other"
        raise AdapterError(msg, hint="They are the same parameter: save the adapter again.")


def _low_rank(
    module: str,
    name: str | None,
    kinds: Mapping[str, Tensor],
    config: Mapping[str, Any],
    source: str,
    *,
    named_as: str,
) -> LowRank:
    """Return the update of a module, whose settings the config has under `named_as`."""
    embedding = any(kind in kinds for kind in _EMBEDDING)
    names = _EMBEDDING if embedding else _FACTORS
    if set(kinds) - {_BIAS, _MAGNITUDE, _TOKENS} != set(names):
        msg = f"module {module!r} of adapter {source!r} has only {' and '.join(sorted(kinds))}"
        raise AdapterError(msg, hint="Each low-rank update needs both of its factors.")
    _require_agreement(module, kinds, config, source, embedding=embedding)
    a, b = kinds[names[0]], kinds[names[1]]
    if name is not None:
        return _of_parameter(module, name, a, b, config, source)
    rank = a.shape[0] if a.shape else 0
    matrices = 2 <= len(a.shape) == len(b.shape) and prod(b.shape[2:]) == 1  # noqa: PLR2004
    if matrices and len(b.shape) > 2 and 0 < b.shape[1] < rank and rank % b.shape[1] == 0:  # noqa: PLR2004
        msg = (
            f"module {module!r} of adapter {source!r} is a convolution with {rank // b.shape[1]} "
            "groups: its update mixes the groups, which its weight cannot hold"
        )
        raise UnsupportedError(
            msg, hint="PEFT does not merge it either. Train without this module."
        )
    if not matrices or rank == 0 or b.shape[1] != rank:
        msg = (
            f"module {module!r} of adapter {source!r}: A {list(a.shape)} and B {list(b.shape)} "
            "do not share a rank of at least 1"
        )
        empty = 0 in a.shape or 0 in b.shape
        raise AdapterError(msg, hint=_EMPTY if empty else _DAMAGED)
    scale = scale_of(named_as, rank, config, source)
    return LowRank(module, a, b, scale, embedding, kinds.get(_MAGNITUDE))


def _of_parameter(  # noqa: PLR0917
    module: str, name: str, a: Tensor, b: Tensor, config: Mapping[str, Any], source: str
) -> LowRank:
    """Return the update of a parameter; the config's rank tells how many experts it stacks."""
    path = f"{module}.{name}"
    rank = rank_by_config(path, config)
    matrices = len(a.shape) == len(b.shape) == 2  # noqa: PLR2004
    counted = isinstance(rank, int) and not isinstance(rank, bool) and rank > 0
    if not matrices or not counted or a.shape[0] % rank or not b.shape[1] == a.shape[0] > 0:
        msg = (
            f"parameter {path!r} of adapter {source!r}: A {list(a.shape)} and B {list(b.shape)} "
            f"are not those of experts with the rank {shown(rank)}"
        )
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    scale = scale_of(path, rank, config, source)
    return LowRank(module, a, b, scale, name=name, experts=a.shape[0] // rank)


def _require_agreement(
    module: str,
    kinds: Mapping[str, Tensor],
    config: Mapping[str, Any],
    source: str,
    *,
    embedding: bool,
) -> None:
    """Require that a module has the parts that the config says, and no others."""
    for setting, kind in (("use_dora", _MAGNITUDE), ("lora_bias", _BIAS)):
        says = bool(config.get(setting)) and not (embedding and kind == _BIAS)
        if says != (kind in kinds):
            held = "has a" if kind in kinds else "has no"
            msg = (
                f"module {module!r} of adapter {source!r} {held} {kind.replace('_vector', '')}, "
                f"but its config says {setting}: {str(says).lower()}"
            )
            raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")


def _row_list(
    module: str, parts: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]
) -> object:
    """Return the rows that the config lists for a module.

    ``save_embedding_layers`` also saves the rows of a tied head, which the config does not name:
    they are those of the module that holds the same values.
    """
    setting = config.get("trainable_token_indices")
    if not isinstance(setting, dict):
        return setting

    def listed(path: str) -> object:
        found = (rows for key, rows in setting.items() if f".{path}".endswith(f".{key}"))
        return next(found, None)

    own = listed(module)
    if own is not None:
        return own
    held = {
        split_wrappers(path)[0]: kinds[_TOKENS] for path, kinds in parts.items() if _TOKENS in kinds
    }
    alike = (
        path for path, rows in held.items() if listed(path) and same_values(rows, held[module])
    )
    return next((listed(path) for path in alike), None)


def _rows(module: str, tensor: Tensor, setting: object, source: str) -> Rows:
    """Return the replaced rows in ascending order; `setting` lists them as the file has them."""
    listed = setting if isinstance(setting, list) else []
    valid = bool(listed) and all(each >= 0 for each in listed)
    if not valid or len(set(listed)) != len(listed):
        msg = f"trainable_token_indices of adapter {source!r} has no list of rows for {module!r}"
        raise AdapterError(msg, hint="The adapter's config is damaged.")
    indices = np.array(listed, np.int64)
    if len(tensor.shape) < 1 or tensor.shape[0] != len(indices):
        shape = list(tensor.shape)
        msg = f"{tensor.name!r} of adapter {source!r} is {shape} for {len(indices)} rows"
        raise AdapterError(msg, hint="Config and tensors are not of the same adapter.")
    order = np.argsort(indices)
    values = MemoryTensor(tensor.name, tensor.dtype, read_all(tensor)[order])
    return Rows(f"{module}.weight", tuple(int(each) for each in indices[order]), values)
