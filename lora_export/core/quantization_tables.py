"""The settings of quantized checkpoints that are read, with their types.

Those of ``quantization_config`` are transformers' and those of the libraries that write such
checkpoints; a state is what bitsandbytes stores beside each weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lora_export.core.checked_table import Integers, Table, Text, check_table
from lora_export.core.errors import CheckpointError
from lora_export.core.json_file import parse_json
from lora_export.core.model_json import first_finding

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BlockState", "check_settings", "parse_state"]

_FLAG: Final = "true or false"


class _Settings(Table):
    quant_method: Text | None = Field(None, description="the name of a method")
    bits: int | None = Field(None, ge=1, le=32, description="a number of bits")
    w_bit: int | None = Field(None, ge=1, le=32, description="a number of bits")
    group_size: int | None = Field(None, ge=-1, description="a size of groups, or -1")
    q_group_size: int | None = Field(None, ge=-1, description="a size of groups, or -1")
    desc_act: bool | None = Field(None, description=_FLAG)
    sym: bool | None = Field(None, description=_FLAG)
    zero_point: bool | None = Field(None, description=_FLAG)
    version: Text | None = Field(None, description="the name of a layout")
    checkpoint_format: Text | None = Field(None, description="the name of a layout")
    format: Text | None = Field(None, description="the name of a layout")
    load_in_4bit: bool | None = Field(None, description=_FLAG)
    load_in_8bit: bool | None = Field(None, description=_FLAG)
    bnb_4bit_quant_type: Text | None = Field(None, description="nf4 or fp4")
    weight_block_size: Integers | None = Field(None, description="a list of two sizes")
    config_groups: dict[str, Any] | None = Field(None, description="a table of groups")
    dynamic: dict[str, Any] | None = Field(None, description="a table of modules")


_Size = Annotated[int, Field(ge=1, lt=1 << 40)]
_BlockSize = Annotated[int, Field(ge=1, le=1 << 16)]


class BlockState(BaseModel):
    """The state of a weight that bitsandbytes stored in blocks."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, defer_build=True)

    quant_type: Literal["nf4", "fp4"]
    blocksize: _BlockSize
    dtype: Literal["float32", "float16", "bfloat16"]
    shape: Annotated[list[_Size], Field(min_length=1, max_length=8)]
    nested_blocksize: _BlockSize | None = None
    nested_offset: Annotated[float, Field(allow_inf_nan=False)] | None = None


def check_settings(table: Mapping[str, Any], *, where: str) -> None:
    """Require that what a config says about quantization has the types that it can have.

    Args:
        table: Its settings of quantization.
        where: The file, for the message.

    Raises:
        CheckpointError: A setting has another type; it is named, with its value.
    """
    hint = "The file is damaged: copy it again."
    check_table(table, _Settings, CheckpointError, where=f"the quantization in {where}", hint=hint)


def parse_state(data: bytes) -> BlockState:
    """Return the state that bytes of JSON hold.

    Raises:
        ValueError: They hold none; the message says why.
        RecursionError: The JSON is nested deeper than Python can read.
    """
    try:
        return BlockState.model_validate(parse_json(data))
    except ValidationError as error:
        raise ValueError(first_finding(error, "the table")) from error
