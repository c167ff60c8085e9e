"""The vocabulary that an adapter brings, where training changed the number of tokens.

``resize_token_embeddings`` gives a model more rows (added tokens), or fewer. The adapter then holds
the token embeddings and the output embeddings whole, with the new number of rows, because the base
has no values for the new ones. Three kinds of parameters have one entry per token:

    1. matrices ``[vocabulary, width]``: token embeddings and output embeddings (`EMBEDDINGS`);
    2. biases ``[vocabulary]`` of the output embeddings (`BIASES`);
    3. ``final_logits_bias`` ``[1, vocabulary]`` of BART and its kin (`PADDED`), which no adapter
       saves: transformers appends zeros, or cuts it.

The tables hold every name whose shape `resize_token_embeddings` of transformers 5.23 changes, over
the 546 pairs of model type and class that it can build without a checkpoint.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.canonical import Saved
from lora_export.core.errors import AdapterError, UnsupportedError
from lora_export.core.listing import first_few

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from lora_export.adapters.canonical import Adapter, LowRank
    from lora_export.core.json_file import JsonObject
    from lora_export.core.parameters import Parameter

__all__ = [
    "BIASES",
    "EMBEDDINGS",
    "PADDED",
    "Vocabulary",
    "resized_config",
    "vocabulary_of",
]

_OUTPUTS: Final = frozenset({
    "decoder", "embed_out", "generator_lm_head", "head", "lm_head", "lm_head.out_proj", "lm_loss",
    "output", "output_layer", "output_projection", "pred_layer.proj", "proj_out", "vocab_projector",
})  # fmt: skip
"""Output embeddings, which a classifier does not have."""

EMBEDDINGS: Final = _OUTPUTS | frozenset({
    "embed_in", "embed_tokens", "embed_tokens_per_layer", "embeddings", "input_embedding", "shared",
    "tok_embeddings", "token_embedding", "tokens_embed", "w", "word_embedding", "word_embeddings",
    "wte",
})  # fmt: skip
"""Ends of the paths of modules, outside the layers, whose weight has a row for each token."""

BIASES: Final = EMBEDDINGS | {"predictions"}
"""The same for a bias of that length; BERT's is ``cls.predictions.bias``."""

PADDED: Final = "final_logits_bias"

_SIZES: Final = ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")
"""Keys of a config that hold the number of rows."""

_SECTIONS: Final = (
    "text_config",
    "encoder",
    "decoder",
    "decoder_config",
    "llm_config",
    "vlm_config",
    "thinker_config",
)
"""Parts of a config that may describe the text model."""

_CLASSIFIERS: Final = frozenset({"SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"})
"""Tasks of PEFT without output embeddings: those that the base stores keep their rows there."""

_LAYER: Final = re.compile(r"\.\d+\.")
_SHOWN: Final = 5
_MATRIX: Final = 2


@dataclass(frozen=True)
class Vocabulary:
    """A change of the number of tokens.

    Attributes:
        before: The rows that the base has.
        after: The rows that the adapter brings.
        parameters: The names of the parameters with one entry per token.
    """

    before: int
    after: int
    parameters: frozenset[str] = field(repr=False)

    @property
    def description(self) -> str:
        """The change as a message says it: ``grows the vocabulary from 128 to 133``."""
        verb = "grows" if self.after > self.before else "shrinks"
        return f"{verb} the vocabulary from {self.before} to {self.after}"

    def resized(self, parameters: Iterable[Parameter]) -> tuple[Parameter, ...]:
        """Return `parameters`, those with one entry per token in their new shape."""
        return tuple(
            self._resized(each) if each.name in self.parameters else each for each in parameters
        )

    def padded(self, parameters: Iterable[Parameter]) -> tuple[Parameter, ...]:
        """Return those of the resized `parameters` that transformers fills with zeros."""
        return tuple(
            each for each in parameters if each.name in self.parameters and _is_padded(each)
        )

    def partners(self, parameters: Iterable[Parameter], saved: Collection[str]) -> dict[str, str]:
        """Return biases that the adapter lacks, and the name under which it brings their value.

        BERT's ``cls.predictions.bias`` and RoBERTa's ``lm_head.bias`` are that of ``decoder``; a
        model whose embeddings are untied holds them apart, and computes with one of them.
        """
        found: dict[str, str] = {}
        for name in self.missing_from(parameters, saved):
            stem, _, leaf = name.rpartition(".")
            other = (
                f"{stem.removesuffix('.decoder')}.bias"
                if stem.endswith(".decoder")
                else (f"{stem}.decoder.bias")
            )
            if leaf == "bias" and other in saved:
                found[name] = other
        return found

    def missing_from(
        self, parameters: Iterable[Parameter], saved: Collection[str]
    ) -> tuple[str, ...]:
        """Return the names of the resized `parameters` that are not among those in `saved`.

        Their new rows would have to be invented.
        """
        return tuple(
            each.name
            for each in parameters
            if each.name in self.parameters and each.name not in saved and not _is_padded(each)
        )

    def require_whole(
        self, adapter: Adapter, parameters: Iterable[Parameter], saved: Collection[str]
    ) -> None:
        """Require that the adapter brings every row.

        Args:
            adapter: The adapter, for the message.
            parameters: The resized parameters.
            saved: The names of those that it brings whole.

        Raises:
            AdapterError: Rows would have to be invented; up to five parameters are named.
        """
        lacking = self.missing_from(parameters, saved)
        if not lacking:
            return
        msg = (
            f"adapter {adapter.source!r} {self.description}, but it does not hold the values of "
            f"{len(lacking)} parameter(s) with {self.after} rows:"
        )
        raise AdapterError(
            msg,
            items=first_few(lacking, _SHOWN),
            hint="Save the adapter again from the resized model: "
            "save_pretrained(FOLDER, save_embedding_layers=True), or train it with both "
            "embeddings in modules_to_save. --drop of the other embedding loses its training.",
        )

    def _resized(self, parameter: Parameter) -> Parameter:
        shape = parameter.shape
        new = (*shape[:-1], self.after) if _is_padded(parameter) else (self.after, *shape[1:])
        return replace(parameter, shape=new)


def vocabulary_of(
    adapter: Adapter,
    parameters: Sequence[Parameter],
    find: Callable[[str], Parameter | None],
    *,
    drop: Sequence[str] = (),
    heads: Collection[str] = (),
) -> Vocabulary | None:
    """Return how an adapter changes the number of tokens; None where it keeps it.

    Args:
        adapter: The adapter.
        parameters: The model's parameters, in the base's shapes.
        find: Returns the parameter that a name of the adapter means.
        drop: Patterns (``fnmatch``) of tensors that the user leaves out.
        heads: Parameters whose rows are labels.

    Raises:
        AdapterError: The adapter's tensors mean different numbers of tokens.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    named: dict[int, str] = {}
    items: tuple[Saved | LowRank, ...] = (*adapter.saved, *adapter.low_rank)
    for item in items:
        parameter = find(item.parameter)
        dropped = any(fnmatch.fnmatchcase(item.parameter, pattern) for pattern in drop)
        if parameter is None or dropped or parameter.name in heads:
            continue
        rows = _rows_of(item, parameter)
        if rows is not None and rows != parameter.shape[0]:
            sizes[parameter.shape[0], rows] += 1
            named.setdefault(rows, item.parameter)
    if not sizes:
        return None
    if len(sizes) > 1:
        shown = ", ".join(f"{name!r} has {rows} rows" for rows, name in sorted(named.items()))
        msg = f"adapter {adapter.source!r} has vocabularies of different sizes: {shown}"
        raise AdapterError(
            msg, hint="Save the adapter again: its tensors come from different models."
        )
    ((before, after),) = sizes
    own = {parameter.name for item in adapter.items if (parameter := find(item.parameter))}
    unused = adapter.task_type in _CLASSIFIERS
    counting = frozenset(
        each.name
        for each in parameters
        if each.name not in heads
        and _token_count(each) == before
        and (each.name in own or not (unused and _is_output(each)))
    )
    return Vocabulary(before, after, counting)


def resized_config(config: Mapping[str, Any], vocabulary: Vocabulary) -> JsonObject:
    """Return a model's config with the new number of tokens, in the section of the text model.

    Raises:
        UnsupportedError: The config does not say the base's number of tokens anywhere, or its
            padding token lies beyond the new one.
    """
    table, found = _with_size(config, vocabulary)
    if not found:
        section = table.get("text_config")
        holder = section if isinstance(section, dict) else table
        if "vocab_size" in holder:
            msg = (
                f"the adapter {vocabulary.description}, and config.json of the base says "
                f"vocab_size: {holder['vocab_size']!r}"
            )
            raise UnsupportedError(
                msg, hint="The base's config.json does not belong to its weights."
            )
        holder["vocab_size"] = vocabulary.after
    padding = table.get("pad_token_id")
    if isinstance(padding, int) and padding >= vocabulary.after:
        msg = (
            f"the adapter {vocabulary.description}, but the base's pad_token_id is {padding}: "
            "transformers cannot load such a model"
        )
        raise UnsupportedError(msg, hint="Set another pad_token_id in the base's config.json.")
    return table


def _with_size(config: Mapping[str, Any], vocabulary: Vocabulary) -> tuple[JsonObject, bool]:
    """Return the config with the new size where it says the old one, and whether it does."""
    table, found = dict(config), False
    for key in _SIZES:
        if table.get(key) == vocabulary.before:
            table[key], found = vocabulary.after, True
    for key in _SECTIONS:
        if isinstance(table.get(key), dict):
            table[key], inside = _with_size(table[key], vocabulary)
            found |= inside
    return table, found


def _rows_of(item: Saved | LowRank, parameter: Parameter) -> int | None:
    """Return the rows that `item` gives to a matrix with one per token; None for any other."""
    shape = parameter.shape
    if len(shape) != _MATRIX or _token_count(parameter) is None:
        return None
    if isinstance(item, Saved):
        own = item.tensor.shape
    elif item.name is None and len(item.a.shape) == _MATRIX:
        own = (item.b.shape[0], item.a.shape[1])
        own = own[::-1] if item.embedding else own
    else:
        return None
    return own[0] if own[1:] == shape[1:] else None


def _token_count(parameter: Parameter) -> int | None:
    """Return the number of tokens that a parameter has entries for; None if its name says none."""
    shape = parameter.shape
    for name in (parameter.name, *parameter.aliases):
        module, _, leaf = name.rpartition(".")
        ends = {module.rpartition(".")[2], ".".join(module.split(".")[-2:])}
        known = {"weight": EMBEDDINGS, "bias": BIASES}.get(leaf, frozenset())
        if leaf == PADDED and shape:
            return shape[-1]
        if shape and not known.isdisjoint(ends) and not _LAYER.search(f".{name}"):
            return shape[0]
    return None


def _is_output(parameter: Parameter) -> bool:
    """Whether a parameter with one entry per token is of the output embeddings."""
    module, _, leaf = parameter.name.rpartition(".")
    ends = {module.rpartition(".")[2], ".".join(module.split(".")[-2:])}
    return leaf == "bias" or not _OUTPUTS.isdisjoint(ends)


def _is_padded(parameter: Parameter) -> bool:
    return parameter.name.rpartition(".")[2] == PADDED
