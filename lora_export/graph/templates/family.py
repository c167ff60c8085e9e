"""The meaning of each key of an architecture's config for the graph.

A key of a config *enters* (it is a size, a number or a choice), or is *irrelevant*; a config that
has another key has no template. `tools.templates` holds both true: templates are confirmed by a
trace with other sizes and with every irrelevant key changed, and what an absent key means is
compared with transformers' own config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NONE", "NUMBER", "TOKEN", "Family", "Kind"]

Kind = tuple[type, ...]
"""The JSON types of the values that an irrelevant key may have."""

NUMBER: Final[Kind] = (int, float)
NONE: Final = type(None)
TOKEN: Final[Kind] = (int, NONE)
_TOKENS: Final[Kind] = (int, list, NONE)

_ALWAYS: Final[dict[str, tuple[Any, ...]]] = {
    "output_hidden_states": (False,),
    "output_attentions": (False,),
    "return_dict": (True,),
    "torchscript": (False,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({},),
}
"""Choices of every config, with the values that templates are for; absent means the first."""

_ANY_CONFIG: Final[dict[str, Kind]] = {
    "use_cache": (bool,),
    "initializer_range": (float,),
    "bos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "sep_token_id": TOKEN,
    "decoder_start_token_id": TOKEN,
    "problem_type": (str, NONE),
    "use_bfloat16": (bool,),
    "tokenizer_class": (str, NONE),
    "_attn_implementation_autoset": (bool,),
}
"""Keys of every config that say nothing of the graph."""


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        model_type: ``model_type`` in a config.
        sizes: Sizes by their names in formulas, each with its key in a config.
        derived: Sizes that are formulas over those of the config; no key of a config is one.
        floats: Settings that are floats, in the same way.
        choices: Keys that are compared, each with the values that templates are made for.
        absent: What an absent key means, as transformers has it; a text that begins with ``=`` is
            a formula. A key that is in neither has to be there.
        nullable: Keys for which null is the same as absence.
        irrelevant: Keys that do not enter, with the types of their values.
        spellings: Other names of keys.
        conditions: Quotients that have to be exact, as transformers demands, and equal formulas.
        rotary: Whether it has rotary positions, of which the frequencies are tables.
        rope_types: The types of rotary positions that transformers has for it.
        window: The key of the sliding window that every layer has; null means none.
        layer_types: Whether a list may say that every layer has full attention.
        depths: The sizes that count layers, by the path of the list of layers.
    """

    model_type: str
    sizes: Mapping[str, str]
    depths: Mapping[str, str]
    derived: Mapping[str, str] = field(default_factory=dict)
    floats: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    nullable: frozenset[str] = frozenset()
    irrelevant: Mapping[str, Kind] = field(default_factory=dict)
    spellings: Mapping[str, str] = field(default_factory=dict)
    conditions: tuple[str, ...] = ()
    rotary: bool = False
    rope_types: tuple[str, ...] = ("default", "llama3")
    window: str | None = None
    layer_types: bool = False

    @property
    def all_choices(self) -> dict[str, tuple[Any, ...]]:
        """The keys that are compared, those of every config too."""
        return {**_ALWAYS, **self.choices}

    @property
    def all_irrelevant(self) -> dict[str, Kind]:
        """The keys that do not enter, those of every config too."""
        return {**_ANY_CONFIG, **self.irrelevant}
