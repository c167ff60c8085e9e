"""The graph of a base and an adapter in ONNX Runtime, against the trained model.

The trace of an architecture is kept in the graph cache, so that only the first case of each takes
seconds.
"""

from __future__ import annotations

import shutil
import traceback
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import make_recipe
from lora_export.core.errors import LoraExportError
from lora_export.core.manifest import read_manifest
from lora_export.graph.spec import tasks
from lora_export.ondevice.judge.decoding import without_cache
from lora_export.ondevice.judge.golden_files import valid_rows
from lora_export.runtime.open_adapter_graph import open_runner
from lora_export.verification.graph_model import open_model
from lora_export.verification.inputs.feeding import feeding_of
from lora_export.verification.inputs.random_inputs import DECODER_IDS, make_cases
from tools.merge_fuzz.families import by_name
from tools.merge_fuzz.judge import Outcome, adapter_rows, kind_of, relative_error
from tools.merge_fuzz.quiet import quiet

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.graph.spec.tasks import Task
    from tools.merge_fuzz.bases import Base
    from tools.merge_fuzz.cases import Case
    from tools.merge_fuzz.judge import Trained

__all__ = ["judge_graph", "task_of"]

_TOLERANCE: Final = 2e-4
_TASKS: Final = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForImageClassification": "image-classification",
}


def task_of(case: Case) -> str | None:
    """Return the task that a case is exported for; None where its family is not exported for it."""
    known = by_name(case.base.family).tasks
    if case.base.trained == "AutoModel":
        return next((name for name in known if name.endswith("feature-extraction")), None)
    name = _TASKS.get(case.base.trained)
    return name if name in known else None


def judge_graph(case: Case, base: Base, trained: Trained, folder: Path, mode: str) -> Outcome:
    """Build the graph of a case, run it, compare."""
    output = folder / "export"
    shutil.rmtree(output, ignore_errors=True)
    task = tasks.by_name(task_of(case) or "")
    try:
        _build(case, base, trained, output, mode)
        found, expected = _run(output, task, trained)
    except LoraExportError as error:
        return Outcome("refused", kind_of(error), f"{error.message} | {error.hint}")
    except Exception as error:  # noqa: BLE001  (whatever it is, it is a fault)
        return Outcome("CRASH", kind_of(error), traceback.format_exc()[-1500:])
    apart = relative_error(found, expected)
    if not apart <= _TOLERANCE:
        return Outcome("DIFFERENT", f"graph, {mode}, by {apart:.2g}", "", apart, trained.effect)
    return Outcome("equal", error=apart, effect=trained.effect)


def _build(case: Case, base: Base, trained: Trained, output: Path, mode: str) -> None:
    recipe = make_recipe(
        {
            "base": str(base.folder),
            "adapters": adapter_rows(case, trained.folder),
            "combine": case.combine.spec.model_dump() if case.combine else None,
            "task": task_of(case),
            "mode": mode,
            "dtype": "float32",
            "verify": {"enabled": False},
            "latency": {"enabled": False},
            "output": str(output),
        },
        folder=output.parent,
    )
    with quiet():
        merge_and_build(recipe)


def _run(output: Path, task: Task, trained: Trained) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the graph computes, and what the trained model does."""
    manifest = read_manifest(output)
    (name,) = manifest.adapters
    own = next(each for each in (name, "swappable", "batched") if each in manifest.graphs)
    record = manifest.graphs[own]
    feeding = feeding_of(output, manifest.graphs["base"])
    outputs = feeding.outputs_for(task.outputs)
    graph = open_model(
        output, record, task, lambda: open_runner(output, manifest, name),
        outputs=outputs, last=manifest.base.logits == "last",
    )  # fmt: skip
    model = task.part_of(trained.model)
    (drawn,) = make_cases(
        trained.model.config.to_dict(), feeding.signature, seed=0, left_padding=task.causal,
        shapes=(_shape(trained.feeds),), padded=False,
    )  # fmt: skip
    feeds = {**drawn.feeds, **_same(drawn.feeds, trained.feeds)}
    inputs = {name: torch.from_numpy(value) for name, value in without_cache(feeds).items()}
    with torch.inference_mode(), quiet():
        fields = model(**inputs, return_dict=True)
    expected = task.result({name: fields[name].float().numpy() for name in task.outputs})
    rows = [
        valid_rows(each, drawn, per_token="sequence" in task.output_axes)
        for each in (graph.run(feeds), expected)
    ]
    found, wanted = (torch.from_numpy(np.asarray(each, np.float64)) for each in rows)
    return found, wanted


def _shape(feeds: Any) -> tuple[int, int]:
    value = feeds.get("input_ids", feeds.get(DECODER_IDS))
    return (2, 8) if value is None else (int(value.shape[0]), int(value.shape[1]))


def _same(wanted: Any, feeds: Any) -> dict[str, Any]:
    """Return the inputs of the merged checkpoint's comparison: trained tokens are among them."""
    return {
        name: np.ascontiguousarray(value.numpy())
        for name, value in feeds.items()
        if name in wanted and isinstance(value, torch.Tensor) and value.dtype == torch.int64
        and tuple(value.shape) == wanted[name].shape
    }  # fmt: skip
