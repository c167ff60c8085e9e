"""A graph made from a template: its numbers filled in, its layers stamped out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper

from lora_export.core.name_conversions import Conversion
from lora_export.core.parameters import Parameter
from lora_export.graph.optimize.complete import complete_graph, joined_parameters
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.repeat import LEAST_LEFT_OUT, Repeat, layers_to_trace
from lora_export.graph.spec.template import GraphTemplate
from lora_export.graph.templates.formulas import evaluate, evaluate_float
from lora_export.graph.templates.numbers import write_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from onnx import ModelProto

__all__ = ["TRACED_LAYERS", "instantiate", "repeats_of", "signs"]

TRACED_LAYERS: Final = 4
"""The layers that a template's graph has: the first two and the last two."""


def instantiate(
    table: Mapping[str, Any],
    graphs: Mapping[str, bytes],
    sizes: Mapping[str, int | float],
    frequencies: npt.NDArray[Any] | None,
) -> GraphTemplate:
    """Return the graph of a model with `sizes`.

    Args:
        table: The template's ``template.json``.
        graphs: Its graphs by component; ``decoder`` is the one of a model that has one.
        sizes: The sizes and float settings of the config.
        frequencies: The rotary frequencies, where the graph has some.

    Raises:
        NotExactError: The sizes are none that a model can have.
        NotRepeatingError: The template is damaged.
    """
    files: dict[str, bytes] = {}
    read: dict[str, tuple[Parameter, ...]] = {}
    for each, part in table["graphs"].items():
        proto = parse_onnx(graphs[each])
        _fill_in(proto, part, sizes, frequencies)
        model = ir.from_proto(proto)
        parameters = tuple(_parameter(row, sizes) for row in part["parameters"])
        for parameter in parameters:
            model.graph.initializers[parameter.name].const_value = None
        files[each], read[each] = complete_graph(model, parameters, repeats_of(table, sizes))
    joined = (
        joined_parameters(read["encoder"], read["decoder"])
        if "encoder" in read
        else read["decoder"]
    )
    return GraphTemplate(
        onnx_bytes=files["decoder"],
        parameters=joined,
        prefix=table["prefix"],
        model_class=table["model_class"],
        opset=table["opset"],
        encoder_bytes=files.get("encoder"),
        conversions=tuple(_conversion(row) for row in table["conversions"]),
    )


def repeats_of(table: Mapping[str, Any], sizes: Mapping[str, int | float]) -> tuple[Repeat, ...]:
    """Return the lists of layers that have to be stamped out: of one kind each but for the first.

    Raises:
        NotExactError: A depth is none that the template is for.
    """
    found = []
    for path, size in table["depths"].items():
        depth = evaluate(size, sizes)
        kinds = (0, *[1] * (depth - 1))
        kept = layers_to_trace(kinds)
        if depth - len(kept) >= LEAST_LEFT_OUT:
            found.append(Repeat(path, kinds, kept))
    return tuple(found)


def _fill_in(
    proto: ModelProto,
    part: Mapping[str, Any],
    sizes: Mapping[str, int | float],
    frequencies: npt.NDArray[Any] | None,
) -> None:
    numbers: dict[str, int | float] = {
        place: evaluate(formula, sizes) for place, formula in part["integers"].items()
    }
    numbers |= {place: evaluate_float(formula, sizes) for place, formula in part["floats"].items()}
    by_name = {each.name: each for each in proto.graph.initializer}
    tables = {}
    for name, row in part["tables"].items():
        shape = [evaluate(formula, sizes) for formula in row["shape"]]
        dtype = numpy_helper.to_array(by_name[name]).dtype
        tables[name] = _table(row["kind"], shape, frequencies).astype(dtype)
    write_numbers(proto, numbers, tables)


def _table(
    kind: str, shape: Sequence[int], frequencies: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    if kind == "arange":
        return np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
    if kind == "zeros":
        return np.zeros(shape)
    if kind == "signs":
        return signs(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    if kind == "frequencies" and frequencies is not None:
        return frequencies.reshape(shape)
    msg = f"no table is called {kind!r}"
    raise ValueError(msg)


def signs(count: int) -> npt.NDArray[Any]:
    """Return the signs by which a rotation's swapped halves are added: half -1, half 1."""
    return np.repeat([-1.0, 1.0], count // 2) if count % 2 == 0 else np.ones(count)


def _parameter(row: Mapping[str, Any], sizes: Mapping[str, int | float]) -> Parameter:
    shape = tuple(evaluate(formula, sizes) for formula in row["shape"])
    return Parameter(**{**row, "shape": shape, "aliases": tuple(row["aliases"])})


def _conversion(row: Mapping[str, Any]) -> Conversion:
    return Conversion(
        **{**row, "targets": tuple(row["targets"]), "operations": tuple(row["operations"])}
    )
