"""The settings of an adapter's ``adapter_config.json`` that are read, with their types.

They are PEFT's: those of ``LoraConfig``, which other formats share as far as they have them, and
those of its other methods. A setting may be absent or null. What a value of another type would do
is not tried: it is refused where the file is opened.
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
_NUMBER = "a finite number"
_SIZE = "an integer of at least 0"
_INTEGER = "an integer"


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
    alpha: Number | None = Field(None, description=_NUMBER)
    scaling: Number | None = Field(None, description=_NUMBER)
    eps: Number | None = Field(None, description=_NUMBER)
    init_r: Count | None = Field(None, description=_SIZE)
    n_frequency: Count | None = Field(None, description=_SIZE)
    n_frequency_pattern: dict[str, Count] | None = Field(
        None, max_length=10_000, description="a table of sizes by name, of at most 10,000 rows"
    )
    random_loc_seed: int | None = Field(None, description=_INTEGER)
    projection_prng_key: int | None = Field(None, description=_INTEGER)
    decompose_factor: int | None = Field(None, description=_INTEGER)
    oft_block_size: Count | None = Field(None, description=_SIZE)
    num_cayley_neumann_terms: Count | None = Field(None, description=_SIZE)
    boft_block_size: Count | None = Field(None, description=_SIZE)
    boft_block_num: Count | None = Field(None, description=_SIZE)
    feedforward_modules: Text | Names | None = Field(None, description=_TARGETS)
    token_indices: Integers | None = Field(None, description="a list of rows")
    weight_tying: Number | None = Field(None, description=_NUMBER)
    save_projection: bool | None = Field(None, description=_FLAG)
    coft: bool | None = Field(None, description=_FLAG)
    block_share: bool | None = Field(None, description=_FLAG)
    use_cayley_neumann: bool | None = Field(None, description=_FLAG)
    apply_GS: bool | None = Field(None, description=_FLAG)  # noqa: N815  (PEFT's name)


class _AdaLoraSettings(_AdapterSettings):
    rank_pattern: dict[str, list[bool]] | None = Field(  # type: ignore[assignment]
        None,
        max_length=10_000,
        description="a table of lists of flags by name, of at most 10,000 rows",
    )


def check_settings(config: Mapping[str, Any], source: str) -> None:
    """Require that an adapter's settings have the types that are read.

    Raises:
        AdapterError: One has another type; it is named, with its value.
    """
    ada_lora = config.get("peft_type") == "ADALORA"
    check_table(
        config,
        _AdaLoraSettings if ada_lora else _AdapterSettings,
        AdapterError,
        where=f"the config of adapter {source!r}",
        hint="adapter_config.json is damaged, or was edited: copy it again.",
    )
