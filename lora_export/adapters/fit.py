"""Whether an adapter fits a base, by names and shapes alone: no graph, no torch, no values.

A header tells a tensor's name, dtype and shape, but not the class of the module that owns it. What
is therefore taken, and not known:

    1. The name that the bare model bears inside one with a head (``bert.``): from a table by model
       type, else the one under which most of the adapter's modules are found.
    2. The layout of a weight: ``[out, in]``; also ``[in, out]`` where the adapter sets
       ``fan_in_fan_out`` or the model type is one with Conv1D, GPT-2's.
    3. A saved parameter of a top-level module that the base lacks entirely is a head that the
       adapter brings (`may_be_brought`); any other that is not found is a mismatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from lora_export.adapters.canonical import Computed, LowRank, Saved
from lora_export.adapters.item_forms import present_items, with_kernel
from lora_export.adapters.misfits import header_misfit, misfit_of
from lora_export.adapters.resolve import ModelNames
from lora_export.adapters.vocabulary import vocabulary_of
from lora_export.adapters.wrappers import TRAINING_ONLY
from lora_export.core.declarations import classes_of
from lora_export.core.parameters import Parameter
from lora_export.core.tensors import count_stored

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter, Item
    from lora_export.adapters.vocabulary import Vocabulary
    from lora_export.core.tensors import Tensor

__all__ = [
    "CONV1D_TYPES",
    "PREFIXES",
    "UNKNOWN_MODULE",
    "Fit",
    "check_fit",
    "header_parameters",
    "may_be_brought",
    "prefix_of",
    "top_modules",
]

UNKNOWN_MODULE: Final = "unknown"
"""The module type of a `Parameter` that comes from a header."""

PREFIXES: Final[dict[str, str]] = {
    "albert": "albert.",
    "bart": "model.",
    "bert": "bert.",
    "camembert": "roberta.",
    "deberta": "deberta.",
    "deberta-v2": "deberta.",
    "distilbert": "distilbert.",
    "electra": "electra.",
    "gemma": "model.",
    "gemma2": "model.",
    "gemma3_text": "model.",
    "gpt2": "transformer.",
    "gpt_neox": "gpt_neox.",
    "llama": "model.",
    "mistral": "model.",
    "modernbert": "model.",
    "mpnet": "mpnet.",
    "phi3": "model.",
    "qwen2": "model.",
    "qwen3": "model.",
    "roberta": "roberta.",
    "t5": "transformer.",
    "whisper": "model.",
    "xlm-roberta": "roberta.",
}
"""``base_model_prefix`` of transformers, by ``model_type``: families whose checkpoints name their
layers as the model does."""

CONV1D_TYPES: Final = frozenset({"gpt2", "openai-gpt"})

_NAMED: Final = frozenset({"peft", "delta"})
"""Formats in which a head is one by its name, where nothing lists it."""

_COMMON_HEADS: Final = frozenset({
    "classification_head", "classifier", "cls", "embed_out", "lm_head", "pre_classifier",
    "qa_outputs", "score",
})  # fmt: skip
"""Top-level modules of heads that a PEFT file may hold although its config does not list them."""


@dataclass(frozen=True)
class Fit:
    """The result of comparing an adapter with a base, by names and shapes.

    Attributes:
        prefix: The name of the bare model that was taken, with its dot, or ``""``.
        matched: How many of the adapter's tensors find a parameter of the right shape.
        replaced: Saved parameters that the base has too.
        brought: Saved parameters that only the adapter has.
        mismatches: One line for each that does not fit, sorted by the adapter's order.
        changed: The base's parameters that a merge would change, in their new shapes.
        vocabulary: How the adapter changes the number of tokens; None where it keeps it.
    """

    prefix: str
    matched: int
    replaced: tuple[str, ...]
    brought: tuple[str, ...]
    mismatches: tuple[str, ...]
    changed: tuple[Parameter, ...] = field(repr=False)
    vocabulary: Vocabulary | None = None

    @property
    def fits(self) -> bool:
        """Whether nothing contradicts it."""
        return not self.mismatches


def header_parameters(tensors: Mapping[str, Tensor]) -> list[Parameter]:
    """Return a checkpoint's parameters from its headers, without their modules."""
    return [
        Parameter(name, tensor.shape, tensor.dtype.name, UNKNOWN_MODULE)
        for name, tensor in tensors.items()
    ]


def prefix_of(model_type: str, parameters: Iterable[Parameter], adapter: Adapter | None) -> str:
    """Return the bare model's name inside one with a head, with its dot, or ``""``.

    By model type where transformers has it; else, of the first components of all names, the one
    under which most of the adapter's modules are found, none where it is not a single one.
    """
    known = _declared_prefix(model_type)
    if known is not None:
        return known
    parameters = tuple(parameters)
    modules = [update.parameter for update in adapter.low_rank] if adapter is not None else []
    modules += [update.parameter for update in adapter.computed] if adapter is not None else []
    firsts = {f"{name.partition('.')[0]}." for name in modules}
    firsts |= {f"{parameter.name.partition('.')[0]}." for parameter in parameters}

    def found_count(prefix: str) -> int:
        names = ModelNames(parameters, prefix)
        return sum(names.find(module) is not None for module in modules)

    most = max(map(found_count, ["", *firsts]))
    best = [prefix for prefix in ("", *sorted(firsts)) if found_count(prefix) == most]
    return best[0] if len(best) == 1 else ""


def _declared_prefix(model_type: str) -> str | None:
    """Return the prefix that transformers' classes of a model type share; None without one."""
    if model_type in PREFIXES:
        return PREFIXES[model_type]
    declared = {each.prefix for each in classes_of(model_type) if each.prefix}
    return f"{declared.pop()}." if len(declared) == 1 else None


def check_fit(
    adapter: Adapter,
    parameters: Sequence[Parameter],
    *,
    prefix: str,
    model_type: str,
    resizable: frozenset[str] = frozenset(),
) -> Fit:
    """Compare names and shapes of `adapter` with those of `parameters`.

    Args:
        adapter: The adapter, its tensors unread.
        parameters: The base's; `module_type` may be `UNKNOWN_MODULE`.
        prefix: The bare model's name; see `prefix_of`.
        model_type: The base's ``model_type``.
        resizable: Parameters whose first axis an adapter may change (the head's labels).
    """
    names = ModelNames(parameters, prefix)
    vocabulary = vocabulary_of(adapter, parameters, names.find, heads=resizable)
    if vocabulary is not None:
        parameters = vocabulary.resized(parameters)
        names = ModelNames(parameters, prefix)
    tops = top_modules(parameters, prefix)
    conv1d = bool(adapter.config.get("fan_in_fan_out")) or model_type in CONV1D_TYPES
    changed: dict[str, Parameter] = {}
    seen: set[tuple[str, type]] = set()
    replaced: list[str] = []
    brought: list[str] = []
    mismatches: list[str] = []
    saved: set[str] = set()
    matched: list[Tensor] = []
    for item in present_items(adapter, names.find)[0]:
        path = item.parameter
        parameter = names.find(path)
        brings = isinstance(item, Saved)
        is_new_head = parameter is None and may_be_brought(item, adapter.format, tops, prefix)
        target = (parameter.name if parameter else path, type(item))
        if target in seen:
            problem: str | None = "the adapter changes it twice"
        else:
            training = path.partition(".")[0] in TRAINING_ONLY
            new = is_new_head and not training
            problem = None if new else _problem(item, parameter, resizable, conv1d=conv1d)
        seen.add(target)
        if problem:
            mismatches.append(f"{path}: {problem}")
            continue
        matched += item.tensors
        if parameter is not None:
            changed[parameter.name] = parameter
        if brings:
            (replaced if parameter else brought).append(path)
            saved.add(parameter.name if parameter else path)
    if vocabulary is not None:
        mismatches += [
            f"{name}: the adapter {vocabulary.description}, and has no such rows of it"
            for name in vocabulary.missing_from(parameters, saved)
        ]
    return Fit(
        prefix,
        count_stored(matched),
        tuple(replaced),
        tuple(brought),
        tuple(mismatches),
        tuple(changed[name] for name in sorted(changed)),
        vocabulary,
    )


def top_modules(parameters: Iterable[Parameter], prefix: str) -> frozenset[str]:
    """Return the top-level modules of a base, the bare model's own name aside."""
    return frozenset(_top(parameter.name, prefix) for parameter in parameters)


def may_be_brought(item: Item, adapter_format: str, tops: Collection[str], prefix: str) -> bool:
    """Whether a parameter that the base lacks is one of a head that the adapter brings.

    It is one where the base lacks the whole top-level module. PEFT files hold such a module only
    where the config lists it in ``modules_to_save``, and output embeddings, which it saves with the
    token embedding; any other tensor takes no PEFT, and is not written into a checkpoint. Files of
    whole tensors (``delta``) list nothing: only a head by a common name is one.

    Args:
        item: What the adapter has for the parameter.
        adapter_format: The adapter's format.
        tops: See `top_modules`.
        prefix: The bare model's name; see `prefix_of`.
    """
    if not isinstance(item, Saved) or _top(item.parameter, prefix) in tops:
        return False
    listed = adapter_format not in _NAMED or not item.in_place
    return listed or item.parameter.partition(".")[0] in _COMMON_HEADS


def _top(name: str, prefix: str) -> str:
    """Return the top-level module of a parameter, the bare model's own name aside."""
    return name.removeprefix(prefix).partition(".")[0]


def _problem(
    item: Item, parameter: Parameter | None, resizable: frozenset[str], *, conv1d: bool
) -> str | None:
    """Return why `item` does not fit, or None."""
    use = TRAINING_ONLY.get(item.parameter.partition(".")[0])
    if use is not None:
        return f"{use}; leave it out with --drop"
    if parameter is None:
        return "the base has no parameter of this name"
    if isinstance(item, Computed) and parameter.module_type == UNKNOWN_MODULE:
        return header_misfit(parameter, item, conv1d=conv1d)
    if not isinstance(item, LowRank) or item.name is not None:
        return misfit_of(parameter, item, resizable)
    item = with_kernel(item, parameter)
    delta = (item.b.shape[0], *item.a.shape[1:])  # (out, in, *kernel)
    if parameter.shape in _layouts(item, delta, parameter, conv1d=conv1d):
        return None
    shown = delta[::-1] if item.embedding else delta
    return f"the update is {list(shown)}, the weight {list(parameter.shape)}"


def _layouts(
    update: LowRank, delta: tuple[int, ...], parameter: Parameter, *, conv1d: bool
) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a weight that a delta ``(out, in)`` can be added to."""
    if update.embedding or parameter.module_type == "Conv1D":
        return (delta[::-1],)
    if parameter.module_type == UNKNOWN_MODULE and conv1d:
        return (delta, delta[::-1])
    return (delta,)
