"""One template from traces of its architecture: fitted by three sizes, confirmed by a fourth."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import transformers
from onnx import helper

from lora_export.graph.graph_export import settings_of
from lora_export.graph.optimize.complete import give_places
from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.tasks import by_name
from lora_export.graph.template_build import build_template, traced_and_simplified
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.instantiate import TRACED_LAYERS, instantiate
from lora_export.graph.templates.matching import match
from lora_export.graph.templates.numbers import is_outside, read_numbers, structure_sha256
from tools.templates.compare import same_graphs
from tools.templates.fit import NoFormulaError, fit_attributes, fit_float, fit_integer, fit_table
from tools.templates.probes import config_of, irrelevant_changed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from onnx import ModelProto

    from lora_export.core.parameters import Parameter
    from lora_export.weights.sentence_head import SentenceHead

_UNLIMITED = 1 << 24

__all__ = ["Subject", "make", "rope_frequencies"]


@dataclass(frozen=True)
class Subject:
    """A template to make: an architecture, a task, a dtype, an opset and choices."""

    model_type: str
    task: str
    dtype: str
    opset: int
    choices: tuple[tuple[str, Any], ...] = ()
    sentence: SentenceHead | None = None

    @property
    def name(self) -> str:
        """The name of its file."""
        words = [self.task, self.dtype, f"opset{self.opset}"]
        words += [f"{key}-{str(value).lower()}" for key, value in self.choices]
        words += [str(self.sentence).replace(", ", "-")] if self.sentence else []
        return f"{self.model_type}/{'.'.join(words)}"


def make(subject: Subject) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the template's table and its graphs.

    Raises:
        NoFormulaError: A number follows from no size, or the graphs differ in more than numbers.
    """
    family, task = FAMILIES[subject.model_type], by_name(subject.task)
    labels = bool(task.label_parameters)
    configs = [config_of(family, n, dict(subject.choices), labels=labels) for n in range(4)]
    matched = [match(family, settings_of(config)) for config in configs]
    sizes = [each.sizes for each in matched[:3]]
    frequencies = [
        rope_frequencies(each.rope, int(each.sizes["head_dim"])) if each.rope else None
        for each in matched
    ]
    traced = [
        traced_and_simplified(
            config, task, subject.dtype, subject.opset, Choices(), sentence=subject.sentence
        )
        for config in configs[:3]
    ]
    graphs = [_proto(each.model, each.parameters) for each in traced]
    part = _fitted(graphs, sizes, frequencies[:3], subject.dtype)
    part["parameters"] = _parameters([each.parameters for each in traced], sizes)
    first = traced[0]
    depths = {repeat.path: "layers" for repeat in first.repeats}
    for each, config in zip(traced[1:], configs[1:3], strict=True):
        if {repeat.path for repeat in each.repeats} != depths.keys():
            msg = f"layers are repeated otherwise in {config}"
            raise NoFormulaError(msg)
    table = {
        "format": 1,
        "model_type": subject.model_type,
        "task": subject.task,
        "dtype": subject.dtype,
        "opset": subject.opset,
        "choices": dict(subject.choices),
        "sentence": str(subject.sentence) if subject.sentence else None,
        "ranges": _ranges([each.sizes for each in matched], part["tables"]),
        "depths": depths,
        "traced_layers": TRACED_LAYERS,
        "prefix": first.prefix,
        "model_class": first.model_class,
        "conversions": [asdict(each) for each in first.conversions],
        "transformers": transformers.__version__,
        "graphs": {"decoder": part},
    }
    files = {"decoder": graphs[0].SerializeToString(deterministic=True)}
    _confirm(subject, table, files, configs[3])
    return table, files


def _confirm(
    subject: Subject, table: dict[str, Any], files: dict[str, bytes], config: dict[str, Any]
) -> None:
    """Compare the instance for `config` with its trace."""
    family, task = FAMILIES[subject.model_type], by_name(subject.task)
    changed = {**irrelevant_changed(family), **config}
    wanted = build_template(
        changed, task, subject.dtype, subject.opset, Choices(), sentence=subject.sentence
    )
    matched = match(family, config)
    values = (
        rope_frequencies(matched.rope, int(matched.sizes["head_dim"])) if matched.rope else None
    )
    made = instantiate(table, files, matched.sizes, values)
    if not same_graphs(made, wanted):
        what = [key for key in vars(made) if getattr(made, key) != getattr(wanted, key)]
        msg = f"{subject.name}: the confirming probe differs in {what}"
        raise NoFormulaError(msg)


def rope_frequencies(rope: str, head_dim: int) -> npt.NDArray[Any]:
    """Return the frequencies of rotary settings, as transformers computes them."""
    kind, theta, *more = rope.split(":")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    parameters: dict[str, Any] = {"rope_type": kind, "rope_theta": float(theta)}
    parameters |= dict(zip(names, map(float, more), strict=False))
    if more:
        parameters[names[-1]] = int(float(more[-1]))
    config = transformers.LlamaConfig(
        head_dim=head_dim, hidden_size=head_dim * 4, num_attention_heads=4,
        rope_parameters=parameters, max_position_embeddings=1 << 20,
    )  # fmt: skip
    module = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    values: npt.NDArray[Any] = module.inv_freq.to(torch.float32).numpy()
    return values


def _proto(model: ir.Model, parameters: Sequence[Parameter]) -> ModelProto:
    give_places(model, parameters)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto


def _fitted(
    graphs: Sequence[ModelProto],
    sizes: Sequence[Mapping[str, int | float]],
    frequencies: Sequence[npt.NDArray[Any] | None],
    dtype: str,
) -> dict[str, Any]:
    read = [read_numbers(graph) for graph in graphs]
    copies = []
    for graph in graphs:
        copy = onnx.ModelProto()
        copy.CopyFrom(graph)
        copies.append(structure_sha256(copy))
    if len(set(copies)) != 1 or any(each[0].keys() != read[0][0].keys() for each in read):
        msg = "the graphs differ in more than numbers"
        raise NoFormulaError(msg)
    dtypes = {
        tensor.name: helper.tensor_dtype_to_np_dtype(tensor.data_type)
        for tensor in graphs[0].graph.initializer
        if not is_outside(tensor)
    }
    integers: dict[str, str] = {}
    floats: dict[str, str] = {}
    attributes: dict[str, list[float]] = {}
    for place in read[0][0]:
        values = [numbers[place] for numbers, _ in read]
        if len(set(values)) == 1:
            continue
        try:
            if isinstance(values[0], int):
                integers[place] = fit_integer([int(value) for value in values], sizes)
            elif place.startswith("init/"):
                name = place.removeprefix("init/").rsplit("/", 2)[0]
                floats[place] = fit_float(values, sizes, dtypes[name])
            else:
                attributes[place] = values
        except NoFormulaError as error:
            msg = f"{place}: {error} for {[dict(each) for each in sizes]}"
            raise NoFormulaError(msg) from error
    found, are_rounded = fit_attributes(attributes, sizes, dtype)
    tables = {
        name: fit_table([each[name] for _, each in read], sizes, frequencies)
        for name, value in read[0][1].items()
        if not all(np.array_equal(each[name], value) for _, each in read)
    }
    part = {"integers": integers, "floats": floats | found, "tables": tables}
    return part | ({"rounded": are_rounded} if are_rounded else {})


def _parameters(
    each_parameters: Sequence[Sequence[Parameter]], sizes: Sequence[Mapping[str, int | float]]
) -> list[dict[str, Any]]:
    rows = []
    for same in zip(*each_parameters, strict=True):
        described = [
            {**asdict(each), "shape": None, "aliases": list(each.aliases)} for each in same
        ]
        if any(row != described[0] for row in described):
            msg = f"parameters differ: {described}"
            raise NoFormulaError(msg)
        shape = [
            str(axis[0]) if len(set(axis)) == 1 else fit_integer(axis, sizes)
            for axis in zip(*(each.shape for each in same), strict=True)
        ]
        rows.append({**described[0], "shape": shape})
    return rows


def _ranges(
    sizes: Sequence[Mapping[str, int | float]], tables: Mapping[str, Any]
) -> dict[str, list[int | float]]:
    """Return the sizes that were seen: the least, and the largest where a table has it.

    Tables are what is folded, and folding has limits; a size that only parameters have has none.
    Of a float both ends count: a term that is too small is folded away.
    """
    large = (row for row in tables.values() if row["kind"] != "frequencies")
    formulas = " ".join(axis for row in large for axis in row["shape"])
    in_tables = set(re.findall(r"[a-z_]+", formulas))
    ranges: dict[str, list[int | float]] = {}
    for name, value in sizes[0].items():
        seen = [each[name] for each in sizes]
        if isinstance(value, float):
            ranges[name] = [min(seen), max(seen)]
        elif name != "layers":
            ranges[name] = [min(seen), max(seen) if name in in_tables else _UNLIMITED]
    return ranges


def sha256_of(data: bytes) -> str:
    """Return the hash of `data`."""
    return hashlib.sha256(data).hexdigest()
