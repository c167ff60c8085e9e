"""Witnesses: for each template a tiny model, and what torch computes with it.

The model's values and inputs follow from names and sizes, so that ``data/witnesses.json`` has the
config and torch's outputs alone. A graph that is made from the template and run gives them again,
or the template, or what fills it in, is wrong on this machine.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import numpy_helper

from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import read_signature
from lora_export.graph.templates import shipped
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import NoTemplateError, match
from lora_export.ondevice.file_opening import TABLE_LIMIT_BYTES, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from lora_export.core.parameters import Parameter

__all__ = ["WITNESSES", "Witness", "inputs_of", "open_witness", "read_witnesses", "value_of"]

WITNESSES: Final = "witnesses.json"
_SIZES: Final = {"batch": 2, "sequence": 5, "total_sequence": 5, "past_sequence": 0}
_SCALE: Final = 0.2
_MOST_VALUES: Final = 1 << 22
"""More values than the parameters of any witness: a damaged config may ask for any size."""


@dataclass(frozen=True)
class Witness:
    """A tiny model that can be run.

    Attributes:
        onnx_bytes: Its graph, with its values inside.
        inputs: What it is run on.
        expected: What torch computes: the first output, in float32.
    """

    onnx_bytes: bytes
    inputs: Mapping[str, npt.NDArray[Any]]
    expected: npt.NDArray[np.float32]


def read_witnesses() -> dict[str, Any]:
    """Return configs and outputs by the template's file.

    Raises:
        NoTemplateError: They are missing or damaged.
    """
    try:
        found: Any = json.loads(read_file(shipped.DATA / WITNESSES, TABLE_LIMIT_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"the witnesses of the templates cannot be read: {error}"
        raise NoTemplateError(msg) from error
    if not isinstance(found, dict):
        msg = "the witnesses of the templates are damaged"
        raise NoTemplateError(msg)
    return {str(file): table for file, table in found.items()}


def open_witness(row: Mapping[str, Any], table: Mapping[str, Any]) -> Witness:
    """Return the witness of a template, made from it.

    Args:
        row: The template's row of the index.
        table: Its row of `read_witnesses`.

    Raises:
        NoTemplateError: The template is damaged, or not for the witness' config.
    """
    try:
        config = table["config"]
        family = FAMILIES[config["model_type"]]
        expected = np.array(table["output"], np.float32).reshape(table["shape"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"its witness is damaged: {error}"
        raise NoTemplateError(msg) from error
    template = shipped.instance_of(row, match(family, config))
    if (count := sum(math.prod(each.shape) for each in template.parameters)) > _MOST_VALUES:
        msg = f"its witness is damaged: it has {count} values"
        raise NoTemplateError(msg)
    model = parse_onnx(template.onnx_bytes)
    parameters = {parameter.name: parameter for parameter in template.parameters}
    for initializer in model.graph.initializer:
        parameter = parameters.get(initializer.name)
        if parameter is not None:
            value = value_of(parameter)
            value = value.T if parameter.transposed else value
            initializer.CopyFrom(
                numpy_helper.from_array(np.ascontiguousarray(value), initializer.name)
            )
    inputs = inputs_of({each.name: each for each in read_signature(model).inputs})
    return Witness(model.SerializeToString(deterministic=True), inputs, expected)


def value_of(parameter: Parameter) -> npt.NDArray[Any]:
    """Return the value of a parameter, in the model's layout: it follows from name and shape."""
    random = np.random.default_rng(zlib.crc32(parameter.name.encode()))
    return random.normal(0, _SCALE, parameter.shape).astype(parameter.stored_dtype.numpy)


def inputs_of(signature: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return an array for each input: ids or pixels, a mask of ones, positions, an empty past."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, given in signature.items():
        shape = [_SIZES[axis] if isinstance(axis, str) else axis for axis in given.axes]
        count = np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
        values: npt.NDArray[Any]
        if name == "input_ids":
            values = 2 + count % 6
        elif name == "position_ids":
            values = count % _SIZES["sequence"]
        elif name == "attention_mask":
            values = np.ones_like(count)
        elif name == "pixel_values":
            values = count % 11 / 8 - 0.5
        else:
            values = count % 2
        found[name] = values.astype(given.dtype)
    return found
