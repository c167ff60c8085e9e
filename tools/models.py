"""Export every family's tiny model, compare it with torch, and write docs/models.md.

The weights are random and written to a file of their own beside the graph, as an export's are.
ONNX Runtime and torch then see the same inputs, of batches and lengths other than the traced ones,
padded on the side that the task pads; positions of padding are left out of the comparison.

Usage: python -m tools.models [--opset N] [--missing] [--rows N] [NAME ...]

With names, only those families are exported anew, and the other rows stay as they are. With another
opset than the page's, what comes out is printed and not written. --missing continues
a run that was cut short: only figures that are not there yet are made.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from lora_export.core import targets
from lora_export.core.errors import UnsupportedError
from lora_export.core.manifest import GraphRecord
from lora_export.core.modes import Mode
from lora_export.exports.graph_files import write_graphs
from lora_export.graph.graph_export import export_graph
from lora_export.graph.spec import tasks
from lora_export.graph.spec.signature import PAST
from lora_export.graph.spec.template import Placement
from lora_export.ondevice.judge.decoding import without_cache
from lora_export.ondevice.judge.golden_files import valid_rows
from lora_export.ondevice.judge.metrics import relative_l2
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.pooling import sentence_embedding
from lora_export.verification.graph_model import open_model
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import make_cases
from lora_export.weights.sentence_head import SentenceHead
from tools.model_dtypes import in_float32
from tools.model_families import FAMILIES, Family
from tools.model_rows import (
    DATA,
    PAGE,
    TOLERANCES,
    Half,
    Row,
    page,
    rows_by_task,
    summary,
    too_far,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from lora_export.graph.spec.signature import Signature
    from lora_export.graph.spec.template import GraphTemplate
    from lora_export.verification.graph_model import GraphModel, PairModel

    Array = npt.NDArray[Any]

__all__ = ["compare", "export_half", "export_row", "renamed", "twin"]

OPSET: Final = targets.by_name(targets.DEFAULT_TARGET).opset
OPERATORS: Final = ("Attention", "RMSNormalization", "RotaryEmbedding", "Gelu")
LABELS: Final = 3
SHAPES: Final = ((1, 1), (1, 8), (3, 12), (2, 40), (4, 17), (1, 80))
LEAST_SPREAD: Final = 0.05
"""Outputs vary at least so much, relative to their size; else agreement would mean nothing."""

_SPREAD: Final = 0.1


def twin(family: Family, task: tasks.Task) -> Any:
    """Return the family's model in torch: float32, its own attention, every parameter random."""
    config = getattr(transformers, family.config)(**family.settings, **_labels(task))
    torch.manual_seed(0)
    model = getattr(transformers, task.auto_class).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * _SPREAD)
    return model.float().eval()


def export_row(family: Family, task_name: str, opset: int = OPSET) -> Row:
    """Export one family for one task in float32, and compare the graph with torch."""
    try:
        task = tasks.by_name(task_name)
        template = exported(family, task, "float32", opset)
    except UnsupportedError as error:
        return Row(family.name, task_name, refused=error.message)
    files = [template.onnx_bytes, *([template.encoder_bytes] if template.encoder_bytes else [])]
    graphs = [onnx.load_model_from_string(each) for each in files]
    model = twin(family, task)
    types = [node.op_type for each in graphs for node in each.graph.node]
    return Row(
        family.name,
        task_name,
        template.model_class,
        len(types),
        template.opset,
        any(value.name.startswith(PAST) for value in graphs[0].graph.input),
        _measured(family, task, template, model),
        renamed=renamed(model),
        operators={name: types.count(name) for name in OPERATORS},
    )


def export_half(family: Family, task_name: str, dtype: str, opset: int = OPSET) -> Half:
    """Export one family for one task in a two-byte dtype, and compare it with torch in float32.

    ONNX Runtime's CPU provider does not compute in bfloat16: such a graph is compared with its
    weights and constants rounded to bfloat16 and its arithmetic in float32.
    """
    try:
        task = tasks.by_name(task_name)
        template = exported(family, task, dtype, opset)
    except UnsupportedError as error:
        return Half(refused=error.message)
    return Half(_measured(family, task, template, twin(family, task)))


def exported(family: Family, task: tasks.Task, dtype: str, opset: int) -> GraphTemplate:
    config = getattr(transformers, family.config)(**family.settings, **_labels(task)).to_dict()
    labels = LABELS if task.label_parameters else None
    return export_graph(
        config, task, dtype=dtype, opset=opset, labels_count=labels, sentence=_head(family, task),
        use_cache=False,
    )  # fmt: skip


def _head(family: Family, task: tasks.Task) -> SentenceHead | None:
    return SentenceHead((family.pooling,), normalize=True) if task.pooled else None


def _measured(family: Family, task: tasks.Task, template: GraphTemplate, model: Any) -> float:
    """Return the largest relative L2 error of a template's graph, with the weights of `model`."""
    with tempfile.TemporaryDirectory() as folder:
        graph, signature = _open(template, model, Path(folder), task)
        return compare(graph, model, signature, task, head=_head(family, task))


def compare(
    graph: GraphModel | PairModel,
    model: Any,
    signature: Signature,
    task: tasks.Task,
    *,
    head: SentenceHead | None = None,
) -> float:
    """Return the largest relative L2 error of a graph's output over all inputs.

    A decoder with a cache is run as a prefill and single steps, on what the encoder's graph
    returned where there is one; torch sees the whole sequence.

    Raises:
        RuntimeError: The reference's outputs vary too little for an agreement to mean anything.
    """
    cases = make_cases(
        model.config.to_dict(), signature, seed=0, left_padding=task.causal, shapes=SHAPES
    )
    per_token = "sequence" in task.output_axes
    pairs = []
    for case in cases:
        feeds = {n: _as_reference(v) for n, v in without_cache(case.feeds).items()}
        with torch.inference_mode():
            output = task.part_of(model)(**feeds)
        if head is not None:
            states = output.last_hidden_state.numpy()
            reference = sentence_embedding(head, {}, states, case.feeds["attention_mask"])
        else:
            reference = task.result({name: output[name].numpy() for name in task.outputs})
        actual = graph.run(case.feeds)
        pairs.append([valid_rows(each, case, per_token=per_token) for each in (actual, reference)])
    table = np.concatenate([reference for _, reference in pairs])
    spread = float(np.linalg.norm(table - table.mean(axis=0)) / np.linalg.norm(table))
    if not spread > LEAST_SPREAD:
        msg = f"the reference of {type(model).__name__} varies by {spread:.2g} of its size only"
        raise RuntimeError(msg)
    usual = float(np.sqrt(np.mean(np.square(table, dtype=np.float64))))
    return max(_error(actual, reference, usual) for actual, reference in pairs)


def _error(actual: Array, reference: Array, usual: float) -> float:
    """Return ``‖actual − reference‖ / max(‖reference‖, usual·√n)``, of n numbers.

    The two logits of a single token may both be nearly 0 by chance: their rounding is measured
    against the size that outputs have elsewhere.
    """
    own = float(np.linalg.norm(reference.astype(np.float64)))
    share = min(1.0, own / (usual * math.sqrt(reference.size)))
    return relative_l2([actual], [reference]) * share


def _as_reference(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return an input of a graph as the reference in float32 takes it."""
    tensor = torch.from_numpy(values)
    return tensor.float() if tensor.is_floating_point() else tensor


def renamed(model: Any) -> bool:
    """Whether transformers writes a checkpoint of `model` with other names than its own."""
    state = model.state_dict()
    return not set(revert_weight_conversion(model, dict(state))) <= set(state)


def _labels(task: tasks.Task) -> dict[str, int]:
    return {"num_labels": LABELS} if task.label_parameters else {}


def _open(
    template: GraphTemplate, model: Any, folder: Path, task: tasks.Task
) -> tuple[GraphModel | PairModel, Signature]:
    """Write graph and weights into `folder`; open them in ONNX Runtime."""
    state = model.state_dict()
    placements: dict[str, Placement] = {}
    graphs = (template.onnx_bytes, template.encoder_bytes)
    in_bfloat16 = any(each.dtype == "bfloat16" for each in template.parameters)
    if in_bfloat16:
        graphs = (in_float32(graphs[0]), graphs[1] and in_float32(graphs[1]))
    (folder / "weights").mkdir()
    with (folder / "weights" / "all.raw").open("wb") as stream:
        for parameter in template.parameters:
            rounded = state[parameter.name].to(getattr(torch, parameter.dtype))
            value = (rounded.float() if parameter.dtype == "bfloat16" else rounded).numpy()
            raw = np.ascontiguousarray(value.T if parameter.transposed else value).tobytes()
            placements[parameter.name] = Placement("weights/all.raw", stream.tell(), len(raw))
            stream.write(raw)
    written = write_graphs(folder, "graph", graphs, placements)
    for file in written.files:
        onnx.checker.check_model(str(folder / file), full_check=True)
    record = GraphRecord(
        mode=Mode.BASE,
        onnx=written.onnx.onnx,
        weights=["weights/all.raw"],
        opset=template.opset,
        sha256=written.onnx.sha256,
        encoder=written.encoder,
    )
    graph = open_model(
        folder, record, task, lambda: OrtRunner(folder / record.onnx),
        outputs=task.outputs, last=False,
    )  # fmt: skip
    return graph, feeding_of(folder, record).signature


def main(words: Sequence[str]) -> None:
    """Export the families that are named, or all of them; write the page, or print its rows."""
    parser = argparse.ArgumentParser(prog="python -m tools.models")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--opset", type=int, default=OPSET)
    parser.add_argument(
        "--missing", action="store_true", help="make only figures that are not there yet"
    )
    parser.add_argument("--rows", type=int, help="make so many rows at most")
    options = parser.parse_args(words)
    names, opset = options.names, options.opset
    unknown = sorted(set(names) - {family.name for family in FAMILIES})
    if unknown:
        sys.exit(f"unknown family {unknown[0]!r}; known: {', '.join(f.name for f in FAMILIES)}")
    wanted = [(family, task) for family in FAMILIES for task in family.tasks]
    left = [(f, t) for f, t in wanted if not names or f.name in names]
    if options.missing:
        done = {key for key, row in rows_by_task().items() if row.refused or row.halves}
        left = [(f, t) for f, t in left if (f.name, t) not in done]
        left.sort(key=lambda pair: pair[0].tasks.index(pair[1]))  # each family's first task first
    for family, task in left[: options.rows]:
        before = rows_by_task().get((family.name, task))
        row = before if options.missing and before else export_row(family, task, opset)
        if not row.refused:
            halves = {dtype: export_half(family, task, dtype, opset) for dtype in TOLERANCES}
            row = replace(row, halves=halves)
        print(f"{family.name}, {task}: {summary(row)}", flush=True)
        if opset != OPSET:
            continue
        rows = {**rows_by_task(), (row.family, row.task): row}
        kept = [rows[f.name, t] for f, t in wanted if (f.name, t) in rows]
        DATA.write_text(json.dumps([asdict(each) for each in kept], indent=1) + "\n")
        PAGE.write_text(page(kept))
    failed = [row for row in rows_by_task().values() if too_far(row)]
    for row in failed:
        print(f"{row.family}, {row.task}: {summary(row)}: over the tolerance", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    main(sys.argv[1:])
