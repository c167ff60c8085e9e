"""The settings of an adapter's ``adapter_config.json`` that are read, with their types.

They are PEFT's (``LoraConfig``), which other formats share as far as they have them. A setting may
be absent or null. What a value of another type would do is not tried: it is refused where the file
is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lora_export.core.checked_table import (
    Count,
    Integers,
    Names,
    Number,
    Table,
    Text,
    check_table,
)
from lora_export.core.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_settings"]

_FLAG = "true or false"
_NAMES = "a list of at most 1,000 names"
_TARGETS = "a list of names, or one expression"


class _AdapterSettings(Table):
    peft_type: Text | None = Field(None, description="a text such as LORA")
    task_type: Text | None = Field(None, description="a text such as CAUSAL_LM")
    base_model_name_or_path: Text | None = Field(None, description="a text")
    revision: Text | None = Field(None, description="a text")
    auto_mapping: dict[str, Any] | None = Field(None, description="a table")
    r: Count | None = Field(None, description="a rank: an integer of at least 0")
    lora_alpha: Number | None = Field(None, description="a finite number")
    rank_pattern: dict[str, Count] | None = Field(
        None, max_length=10_000, description="a table of ranks by name, of at most 10,000 rows"
    )
    alpha_pattern: dict[str, Number] | None = Field(
        None,
        max_length=10_000,
        description="a table of finite numbers by name, of at most 10,000 rows",
    )
    use_rslora: bool | None = Field(None, description=_FLAG)
    use_dora: bool | None = Field(None, description=_FLAG)
    lora_bias: bool | None = Field(None, description=_FLAG)
    fan_in_fan_out: bool | None = Field(None, description=_FLAG)
    ensure_weight_tying: bool | None = Field(None, description=_FLAG)
    init_lora_weights: bool | Text | None = Field(
        None, description="true, false or the name of a method"
    )
    bias: Text | None = Field(None, description="none, all or lora_only")
    target_modules: Text | Names | None = Field(None, description=_TARGETS)
    exclude_modules: Text | Names | None = Field(None, description=_TARGETS)
    target_parameters: Names | None = Field(None, max_length=1000, description=_NAMES)
    modules_to_save: Names | None = Field(None, max_length=1000, description=_NAMES)
    layers_to_transform: int | Integers | None = Field(
        None, description="a number or a list of numbers"
    )
    layers_pattern: Text | Annotated[Names, Field(max_length=1000)] | None = Field(
        None, description="a name, or a list of at most 1,000 names"
    )
    trainable_token_indices: (
        Integers | Annotated[dict[str, Integers], Field(max_length=1000)] | None
    ) = Field(None, description="a list of rows, or a table of such lists by module")


def check_settings(config: Mapping[str, Any], source: str) -> None:
    """Require that an adapter's settings have the types that are read.

    Raises:
        AdapterError: One has another type; it is named, with its value.
    """
    check_table(
        config,
        _AdapterSettings,
        AdapterError,
        where=f"the config of adapter {source!r}",
        hint="adapter_config.json is damaged, or was edited: copy it again.",
    )
