"""The formats of quantized checkpoints that are read, as one table.

The tensors decide: each format finds the weights that are stored in its way. What the config says
about them is compared afterwards, and a config that contradicts them is an error, as is a tensor of
codes that no format has claimed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lora_export.adapters.layout import CONV1D_MODULES
from lora_export.core.dtypes import DTYPES
from lora_export.core.errors import CheckpointError, UnsupportedError
from lora_export.core.listing import first_few
from lora_export.core.quantization_record import StoredForm
from lora_export.weights.quantized import bitsandbytes, compressed, grouped, mxfp4, scaled
from lora_export.weights.quantized.claims import require_settings
from lora_export.weights.quantized.codes import code_names, method_of, refuse_quantized
from lora_export.weights.quantized.panels import damaged
from lora_export.weights.quantized.settings import read_settings
from lora_export.weights.quantized.stored import Stored, model_dtype
from lora_export.weights.quantized.weight import QuantizedWeight, turned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from lora_export.core.tensors import Tensor
    from lora_export.weights.quantized.weight import Form

__all__ = ["FORMATS", "METHODS", "Format", "QuantizedBase", "read_quantized"]

_SHOWN: Final = 5
_OF_ACTIVATIONS: Final = re.compile(r".+\.(?:input|output|q|k|v)_(?:scale|zero_point|global_scale)")
"""Scales of activations and caches, which no float model has."""

_SCALES: Final = {
    "int8": "SCB or weight_scale",
    "uint8": "quant_state.bitsandbytes__nf4 and absmax",
    "float8_e4m3fn": "weight_scale or weight_scale_inv",
    "float8_e5m2": "weight_scale",
}
"""The tensors beside a weight of each dtype, for messages."""


@dataclass(frozen=True)
class Format:
    """A format of quantized weights.

    Attributes:
        method: What ``quant_method`` says of it.
        title: What documentation calls it.
        suffixes: The ends of the names of its tensors, for the documentation.
        find: Yields the weights that are stored in this way.
    """

    method: str
    title: str
    suffixes: str
    find: Callable[[Stored], Iterator[QuantizedWeight]]


FORMATS: Final = (
    Format(
        bitsandbytes.METHOD,
        "bitsandbytes NF4, FP4 (`load_in_4bit`)",
        "`.weight`, `.weight.absmax`, `.weight.quant_map`, `.weight.quant_state.bitsandbytes__nf4`",
        bitsandbytes.find_4bit_weights,
    ),
    Format(
        bitsandbytes.METHOD,
        "bitsandbytes int8 (`load_in_8bit`)",
        "`.weight`, `.SCB`, `.weight_format`",
        bitsandbytes.find_8bit_weights,
    ),
    Format(
        grouped.GPTQ,
        "GPTQ, 2, 3, 4 and 8 bits, with and without `desc_act`, `gptq` and `gptq_v2`",
        "`.qweight`, `.qzeros`, `.scales`, `.g_idx`",
        grouped.find_gptq_weights,
    ),
    Format(
        grouped.AWQ,
        "AWQ, 4 bits, `gemm`",
        "`.qweight`, `.qzeros`, `.scales`",
        grouped.find_awq_weights,
    ),
    Format(
        scaled.COMPRESSED,
        "compressed-tensors `pack-quantized`, 1 to 8 bits",
        "`.weight_packed`, `.weight_scale`, `.weight_shape`, `.weight_zero_point`, `.weight_g_idx`",
        compressed.find_packed_weights,
    ),
    Format(
        scaled.COMPRESSED,
        "compressed-tensors `int-quantized` and `float-quantized` (int8, FP8), FBGEMM's and "
        "ModelOpt's FP8",
        "`.weight`, `.weight_scale`, `.weight_zero_point`",
        scaled.find_scaled_weights,
    ),
    Format(
        scaled.BLOCK_FP8,
        "FP8 in blocks (DeepSeek)",
        "`.weight`, `.weight_scale_inv`",
        scaled.find_block_weights,
    ),
    Format(mxfp4.MXFP4, "MXFP4 (gpt-oss)", "`_blocks`, `_scales`", mxfp4.find_mxfp4_weights),
)


METHODS: Final = frozenset({row.method for row in FORMATS} | set(scaled.OTHER_METHODS))
"""The values of ``quant_method`` that a checkpoint which is read may have."""


@dataclass(frozen=True)
class QuantizedBase:
    """A quantized checkpoint beside the floats that it stands for.

    Attributes:
        stored: Its tensors as the files hold them.
        config: Its ``config.json`` as the file has it.
        floats: Every tensor of the model: quantized weights as floats, the others as they are.
        weights: The quantized weights, by the names that they have in `floats`.
    """

    stored: Mapping[str, Tensor] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    floats: Mapping[str, Tensor] = field(repr=False)
    weights: Mapping[str, QuantizedWeight] = field(repr=False)

    def stored_names(self, name: str) -> tuple[str, ...]:
        """Return the names in the files of what a tensor of `floats` is stored as."""
        weight = self.weights.get(name)
        return (name,) if weight is None else tuple(part.name for part in weight.parts)

    @property
    def stored_form(self) -> StoredForm | None:
        """The form in which the weights are stored, for records; None where all are floats."""
        forms = [each.form for each in self.weights.values() if not _is_float(each.form)]
        if not forms:
            return None
        return StoredForm(
            method=forms[0].method,
            schemes=sorted({form.scheme for form in forms}),
            bits=sorted({form.bits for form in forms}),
            group_sizes=sorted({form.group_size for form in forms}),
            weights=len(forms),
        )


def _is_float(form: Form) -> bool:
    return form.scheme in DTYPES and DTYPES[form.scheme].floating


def read_quantized(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path
) -> QuantizedBase | None:
    """Return the floats that a checkpoint stands for; None where nothing in it is quantized.

    Args:
        tensors: Its tensors, by their names in the files.
        config: Its ``config.json``.
        folder: Where its files are.

    Raises:
        CheckpointError: Parts of a weight are missing or do not fit, or the config contradicts
            them.
        UnsupportedError: A method that is not known, or several in one checkpoint.
    """
    if not code_names(tensors):
        return None
    stored = Stored(tensors, read_settings(config, folder), model_dtype(config))
    if stored.settings.get("quant_method") not in {None, *METHODS}:
        refuse_quantized(config, folder)
    found = [weight for row in FORMATS for weight in row.find(stored)]
    input_first = CONV1D_MODULES.get(str(config.get("model_type")), frozenset())
    found = [turned(each) if _module(each) in input_first else each for each in found]
    if not found:
        _require_scales(tensors, config)
        refuse_quantized(config, folder)
        return None
    used = {part.name for weight in found for part in weight.parts}
    rest = {
        name: tensor
        for name, tensor in tensors.items()
        if name not in used and _OF_ACTIVATIONS.fullmatch(name) is None
    }
    _require_claimed(rest, config, folder)
    _require_one_method(found, folder)
    require_settings(stored.settings, found, folder)
    floats = {**rest}
    for weight in found:
        if floats.setdefault(weight.name, weight) is not weight:
            msg = f"the base {str(folder)!r} has the tensor {weight.name!r} twice, once quantized"
            raise CheckpointError(msg, hint="Save the checkpoint again.")
    return QuantizedBase(tensors, config, floats, {each.name: each for each in found})


def _module(weight: QuantizedWeight) -> str:
    """Return the last part of the name of the module of a weight."""
    return weight.name.removesuffix(".weight").rpartition(".")[2]


def _require_claimed(rest: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> None:
    """Require that no codes are left over."""
    codes = code_names(rest)
    if not codes:
        return
    _require_scales(rest, config)
    method = method_of(config)
    msg = f"the base {str(folder)!r} holds {len(codes)} tensor(s) of codes in a form that is not"
    msg += f" read{'' if method is None else f' ({method})'}:"
    items = [f"{name}: {rest[name].dtype.name} {list(rest[name].shape)}" for name in codes]
    hint = "Give the unquantized checkpoint; docs/checkpoints.md lists the formats that are read."
    raise UnsupportedError(msg, items=first_few(items, _SHOWN), hint=hint)


def _require_scales(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Raise for a weight of one byte a value without scales, where the method is one that is read.

    Raises:
        CheckpointError: There is one.
    """
    if method_of(config) not in METHODS:
        return
    for name, tensor in tensors.items():
        scales = _SCALES.get(tensor.dtype.name)
        if scales is not None and name.endswith(".weight"):
            msg = f"tensor {name!r} of the base is {tensor.dtype.name}, and its scales are missing"
            raise damaged(f"{msg}: {scales}")


def _require_one_method(found: list[QuantizedWeight], folder: Path) -> None:
    by_method = {weight.form.method: weight.name for weight in reversed(found)}
    if len(by_method) > 1:
        parts = ", ".join(f"{method} ({name})" for method, name in sorted(by_method.items()))
        msg = f"the base {str(folder)!r} mixes methods of quantization: {parts}"
        raise UnsupportedError(msg, hint="Give a checkpoint that is quantized by one method.")
