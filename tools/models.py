"""Export every family's tiny model, compare it with torch, and write docs/models.md.

The weights are random and written to a file of their own beside the graph, as an export's are.
ONNX Runtime and torch then see the same inputs, of batches and lengths other than the traced ones,
padded on the side that the task pads; positions of padding are left out of the comparison.

Usage: python -m tools.models [--opset N] [NAME ...]

With names, only those families are exported anew, and the other rows stay as they are. With another
opset than the page's, what comes out is printed and not written.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from lora_export.base import targets
from lora_export.base.errors import UnsupportedError
from lora_export.base.manifest import GraphRecord
from lora_export.device.decoding import without_cache
from lora_export.device.golden import valid_rows
from lora_export.device.metrics import relative_l2
from lora_export.exports.graph_files import write_graphs
from lora_export.graph import tasks
from lora_export.graph.export import export_graph
from lora_export.graph.signature import PAST
from lora_export.graph.template import Placement
from lora_export.runtime.ort import OrtRunner
from lora_export.runtime.pooling import sentence_embedding
from lora_export.verify.feeding import feeding_of
from lora_export.verify.inputs import make_cases
from lora_export.verify.running import opened
from lora_export.weights.sentence import SentenceHead
from tools.model_families import FAMILIES, Family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.graph.signature import Signature
    from lora_export.graph.template import GraphTemplate
    from lora_export.verify.running import OneGraph, TwoGraphs

__all__ = ["DATA", "Row", "compare", "export_row", "page", "renamed", "twin"]

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "models.md"
DATA: Final = ROOT / "docs" / "models.json"

OPSET: Final = targets.by_name(targets.DEFAULT_TARGET).opset
OPERATORS: Final = ("Attention", "RMSNormalization", "RotaryEmbedding", "Gelu")
LABELS: Final = 3
SHAPES: Final = ((1, 1), (1, 8), (3, 12), (2, 40), (4, 17), (1, 80))
TOLERANCE: Final = 1e-5
LEAST_SPREAD: Final = 0.05
"""Outputs vary at least so much, relative to their size; else agreement would mean nothing."""

_SPREAD: Final = 0.1


@dataclass(frozen=True)
class Row:
    """What one export came to.

    Attributes:
        family: The family's name.
        task: The task.
        model_class: The class in transformers; empty where none was built.
        nodes: Nodes of the graph.
        opset: Its opset.
        cache: Whether the graph takes past keys and values.
        relative_l2: The largest error over all inputs, against torch.
        refused: Why there is no graph.
        renamed: Whether checkpoints on the hub have other names than the model's parameters.
        operators: How many nodes of newer opsets stand for a whole norm, rotation or attention.
    """

    family: str
    task: str
    model_class: str = ""
    nodes: int = 0
    opset: int = 0
    cache: bool = False
    relative_l2: float | None = None
    refused: str = ""
    renamed: bool = False
    operators: Mapping[str, int] = field(default_factory=dict)


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
    """Export one family for one task, and compare the graph with torch."""
    try:
        task = tasks.by_name(task_name)
        config = getattr(transformers, family.config)(**family.settings, **_labels(task)).to_dict()
        labels = LABELS if task.label_parameters else None
        head = SentenceHead((family.pooling,), normalize=True) if task.pooled else None
        template = export_graph(
            config, task, dtype="float32", opset=opset, labels_count=labels, sentence=head,
            use_cache=False,
        )  # fmt: skip
    except UnsupportedError as error:
        return Row(family.name, task_name, refused=error.message)
    files = [template.onnx_bytes, *([template.encoder_bytes] if template.encoder_bytes else [])]
    graphs = [onnx.load_model_from_string(each) for each in files]
    with tempfile.TemporaryDirectory() as folder:
        model = twin(family, task)
        graph, signature = _open(template, model, Path(folder), task)
        worst = compare(graph, model, signature, task, head=head)
    types = [node.op_type for each in graphs for node in each.graph.node]
    return Row(
        family.name,
        task_name,
        template.model_class,
        len(types),
        template.opset,
        any(value.name.startswith(PAST) for value in graphs[0].graph.input),
        worst,
        renamed=renamed(model),
        operators={name: types.count(name) for name in OPERATORS},
    )


def compare(
    graph: OneGraph | TwoGraphs,
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
    worst, references = 0.0, []
    for case in cases:
        feeds = {n: torch.from_numpy(v) for n, v in without_cache(case.feeds).items()}
        with torch.inference_mode():
            output = task.part_of(model)(**feeds)
        if head is not None:
            states = output.last_hidden_state.numpy()
            reference = sentence_embedding(head, {}, states, case.feeds["attention_mask"])
        else:
            reference = task.result({name: output[name].numpy() for name in task.outputs})
        actual = graph.run(case.feeds)
        pair = [valid_rows(each, case, per_token=per_token) for each in (actual, reference)]
        worst = max(worst, relative_l2([pair[0]], [pair[1]]))
        references.append(pair[1])
    table = np.concatenate(references)
    spread = float(np.linalg.norm(table - table.mean(axis=0)) / np.linalg.norm(table))
    if not spread > LEAST_SPREAD:
        msg = f"the reference of {type(model).__name__} varies by {spread:.2g} of its size only"
        raise RuntimeError(msg)
    return worst


def renamed(model: Any) -> bool:
    """Whether transformers writes a checkpoint of `model` with other names than its own."""
    state = model.state_dict()
    return not set(revert_weight_conversion(model, dict(state))) <= set(state)


def _labels(task: tasks.Task) -> dict[str, int]:
    return {"num_labels": LABELS} if task.label_parameters else {}


def _open(
    template: GraphTemplate, model: Any, folder: Path, task: tasks.Task
) -> tuple[OneGraph | TwoGraphs, Signature]:
    """Write graph and weights into `folder`; open them in ONNX Runtime."""
    state = model.state_dict()
    placements: dict[str, Placement] = {}
    (folder / "weights").mkdir()
    with (folder / "weights" / "all.raw").open("wb") as stream:
        for parameter in template.parameters:
            value = state[parameter.name].numpy()
            raw = np.ascontiguousarray(value.T if parameter.transposed else value).tobytes()
            placements[parameter.name] = Placement("weights/all.raw", stream.tell(), len(raw))
            stream.write(raw)
    graphs = (template.onnx_bytes, template.encoder_bytes)
    written = write_graphs(folder, "graph", graphs, placements)
    for file in written.files:
        onnx.checker.check_model(str(folder / file), full_check=True)
    record = GraphRecord(
        mode="base",
        onnx=written.onnx.onnx,
        weights=["weights/all.raw"],
        opset=template.opset,
        sha256=written.onnx.sha256,
        encoder=written.encoder,
    )
    graph = opened(
        folder, record, task, lambda: OrtRunner(folder / record.onnx),
        outputs=task.outputs, last=False,
    )  # fmt: skip
    return graph, feeding_of(folder, record).signature


def page(rows: Sequence[Row]) -> str:
    """Return docs/models.md."""
    lines = [
        "# Model families",
        "",
        "Every family is built tiny from its config, exported without weights, given random ones,",
        "and compared with torch in float32: several batches and lengths, padding, inputs longer",
        "than any sliding window, and for a cache a prefill followed by single steps. *Parity* is",
        "the largest relative L2 error over these inputs. Written by `python -m tools.models`.",
        "Of an encoder-decoder, which is two graphs, *nodes* counts those of both.",
        "",
        "¹ transformers renames or stacks parameters of this family while it loads a checkpoint of",
        "the hub, and so does the export: by the model's own rules, at creation. The graph's",
        "parameters have the model's names, and an adapter may have these or the hub's.",
        "",
        "| family | task | class | nodes | opset | cache | parity |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for row in rows:
        if row.refused:
            lines.append(f"| {row.family} | {row.task} | | | | | not exported: {row.refused} |")
        else:
            cache = "yes" if row.cache else "no"
            lines.append(
                f"| {row.family}{'¹' if row.renamed else ''} | {row.task} | `{row.model_class}` "
                f"| {row.nodes} | {row.opset} "
                f"| {cache} | {row.relative_l2:.1e} |"
            )
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> None:
    """Export the families that are named, or all of them; write the page, or print its rows."""
    parser = argparse.ArgumentParser(prog="python -m tools.models")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--opset", type=int, default=OPSET)
    options = parser.parse_args(words)
    names, opset = options.names, options.opset
    unknown = sorted(set(names) - {family.name for family in FAMILIES})
    if unknown:
        sys.exit(f"unknown family {unknown[0]!r}; known: {', '.join(f.name for f in FAMILIES)}")
    wanted = [(family, task) for family in FAMILIES for task in family.tasks]
    for family, task in wanted:
        if not names or family.name in names:
            row = export_row(family, task, opset)
            said = row.refused or f"{row.nodes} nodes, {row.relative_l2:.1e}, {row.operators}"
            print(f"{family.name}, {task}: {said}", flush=True)
            if opset != OPSET:
                continue
            rows = {**_stored(), (row.family, row.task): row}
            kept = [rows[f.name, t] for f, t in wanted if (f.name, t) in rows]
            DATA.write_text(json.dumps([asdict(each) for each in kept], indent=1) + "\n")
            PAGE.write_text(page(kept))
    failed = [
        r for r in _stored().values() if not r.refused and not (r.relative_l2 or 0) < TOLERANCE
    ]
    for row in failed:
        print(f"{row.family}, {row.task}: {row.relative_l2} is over {TOLERANCE}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def _stored() -> dict[tuple[str, str], Row]:
    """Return the rows that are written."""
    stored = json.loads(DATA.read_text()) if DATA.exists() else []
    return {(row["family"], row["task"]): Row(**row) for row in stored}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    main(sys.argv[1:])
