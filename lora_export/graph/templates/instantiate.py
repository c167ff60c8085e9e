"""A graph made from a template: its numbers filled in, its layers stamped out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper

from lora_export.core.dtypes import by_name
from lora_export.core.name_conversions import Conversion
from lora_export.core.parameters import Parameter
from lora_export.graph.optimize.complete import complete_graph, joined_parameters
from lora_export.graph.optimize.layer_parts import NotRepeatingError
from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.repeat import Repeat, layers_to_trace
from lora_export.graph.spec.template import GraphTemplate
from lora_export.graph.templates.formulas import NotExactError, evaluate, evaluate_float
from lora_export.graph.templates.numbers import write_numbers
from lora_export.graph.templates.shallow import without_middle_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from onnx import ModelProto

__all__ = ["TRACED_LAYERS", "instantiate", "repeats_of", "rounded", "signs"]

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
        NotExactError: The sizes are none that a model can have, or the template is damaged.
    """
    files: dict[str, bytes] = {}
    read: dict[str, tuple[Parameter, ...]] = {}
    for each, part in table["graphs"].items():
        proto = parse_onnx(graphs[each])
        _fill_in(proto, part, sizes, frequencies, table["dtype"])
        model = ir.from_proto(proto)
        parameters = tuple(_parameter(row, sizes) for row in part["parameters"])
        for parameter in parameters:
            model.graph.initializers[parameter.name].const_value = None
        try:
            parameters = _without_layers(model, parameters, table, sizes)
            files[each], read[each] = complete_graph(model, parameters, repeats_of(table, sizes))
        except NotRepeatingError as error:
            msg = f"the template has layers that differ: {error}"
            raise NotExactError(msg) from error
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


def _without_layers(
    model: ir.Model,
    parameters: tuple[Parameter, ...],
    table: Mapping[str, Any],
    sizes: Mapping[str, int | float],
) -> tuple[Parameter, ...]:
    """Take out the layers that a model has not, where it has fewer than the template."""
    for path, size in table["depths"].items():
        depth = evaluate(size, sizes)
        if depth < TRACED_LAYERS:
            parameters = without_middle_layers(model, parameters, path, depth)
    return parameters


def repeats_of(table: Mapping[str, Any], sizes: Mapping[str, int | float]) -> tuple[Repeat, ...]:
    """Return the lists of which layers have to be stamped out: of one kind each but for the first.

    Raises:
        NotExactError: A depth is none that the template is for.
    """
    found = []
    for path, size in table["depths"].items():
        depth = evaluate(size, sizes)
        kinds = (0, *[1] * (depth - 1))
        kept = layers_to_trace(kinds)
        if depth > len(kept):
            found.append(Repeat(path, kinds, kept))
    return tuple(found)


def _fill_in(
    proto: ModelProto,
    part: Mapping[str, Any],
    sizes: Mapping[str, int | float],
    frequencies: npt.NDArray[Any] | None,
    dtype: str,
) -> None:
    numbers: dict[str, int | float] = {
        place: evaluate(formula, sizes) for place, formula in part["integers"].items()
    }
    numbers |= {place: evaluate_float(formula, sizes) for place, formula in part["floats"].items()}
    for place in part.get("rounded", ()):
        numbers[place] = rounded(numbers[place], dtype)
    tensors = {each.name: each for each in proto.graph.initializer}
    tables = {}
    for name, row in part["tables"].items():
        shape = [evaluate(formula, sizes) for formula in row["shape"]]
        own = numpy_helper.to_array(tensors[name]).dtype
        tables[name] = _table(row["kind"], shape, frequencies).astype(own)
    write_numbers(proto, numbers, tables)


def rounded(value: float, dtype: str) -> float:
    """Return a float as `dtype` has it: an attribute is float32, and says what a weight would."""
    return float(np.asarray(value, np.float64).astype(by_name(dtype).numpy))


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
