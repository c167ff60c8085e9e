"""Families exported for the runtimes that `layout` serves, and what PEFT in torch makes of them."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.commands.layout import layout
from lora_export.graph.spec import tasks
from tests.helpers.builds import build
from tests.helpers.chat_models import save_chat_tokenizer
from tests.helpers.models import load_tiny, save_tiny_adapter
from tests.helpers.sentences import save_sentences
from tools.model_families import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["Case", "expected", "job_of", "make_case", "require_same"]

SENTENCES: Final = "sentence-similarity"
TEXTS: Final = ("the quick brown fox jumps over", "a dog")
COUNT: Final = 10
LABELS: Final = 3
_END: Final = 2
_LEFT: Final = r".*(pooler|classifier|score|qa_outputs).*"
"""Modules that are trained whole, or not at all."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A family with an adapter, and their export.

    Attributes:
        family: A name of `tools.model_families.FAMILIES`.
        task: One of its tasks.
        base: The checkpoint.
        adapter: PEFT's.
        export: What ``merge-and-build`` made, the adapter called ``mine``.
    """

    family: str
    task: str
    base: Path
    adapter: Path
    export: Path

    def layout(self, runtime: str, folder: Path) -> Path:
        """Write the adapter for a runtime."""
        layout(self.export, runtime, folder, adapter="mine")
        return folder


def make_case(family: str, task: str, root: Path, **settings: Any) -> Case:
    """Save a random checkpoint of a family with a tokenizer, an adapter, and export them.

    Args:
        family: A name of `tools.model_families.FAMILIES`.
        task: One of its tasks.
        root: A folder.
        settings: Further keys of the recipe.
    """
    import torch
    import transformers

    row = next(each for each in FAMILIES if each.name == family)
    entry = tasks.by_name(task)
    labels = {"num_labels": LABELS} if entry.label_parameters else {}
    config = getattr(transformers, row.config)(**{**row.settings, **labels})
    torch.manual_seed(0)
    model = getattr(transformers, entry.auto_class).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    plain = root / "plain"
    model.save_pretrained(plain)
    if "pixel_values" not in entry.inputs:
        save_chat_tokenizer(plain)
    held = "feature-extraction" if task == SENTENCES else task
    modules = [name for name, _ in model.named_modules()]
    adapter = save_tiny_adapter(
        plain,
        root / "adapter",
        task=held,
        labels_count=LABELS if entry.label_parameters else None,
        target_modules="all-linear",
        **({"exclude_modules": _LEFT} if any(map(re.compile(_LEFT).fullmatch, modules)) else {}),
        strength=0.2,
    )
    base = (
        save_sentences(plain, root / "base", f"{row.pooling}_tokens")
        if task == SENTENCES
        else plain
    )
    build(base, {"mine": adapter}, root / "out", task=task, **settings)
    return Case(family, task, base, adapter, root / "out")


def job_of(case: Case, folder: Path) -> dict[str, Any]:
    """Return what a client is asked, of the directory `folder`."""
    job: dict[str, Any] = {"folder": str(folder), "task": case.task, "new_tokens": COUNT}
    inputs = tasks.by_name(case.task).inputs
    random = np.random.default_rng(0)
    config = json.loads((case.base / "config.json").read_text())
    if "pixel_values" in inputs:
        shape = (2, 3, *[config.get("image_size", 24)] * 2)
        return {**job, "arrays": {"pixel_values": random.standard_normal(shape).tolist()}}
    if "input_features" in inputs:
        shape = (1, config["num_mel_bins"], 2 * config["max_source_positions"])
        return {**job, "arrays": {"input_features": random.standard_normal(shape).tolist()}}
    return {**job, "texts": list(TEXTS)}


def expected(case: Case, job: dict[str, Any]) -> dict[str, Any]:
    """Return what PEFT in torch makes of a job, its adapter unmerged."""
    import peft
    import torch
    import transformers

    entry = tasks.by_name(case.task)
    held = "feature-extraction" if case.task == SENTENCES else case.task
    labels = LABELS if entry.label_parameters else None
    model = load_tiny(case.base, held, labels_count=labels, dtype="float32")
    model = peft.PeftModel.from_pretrained(model, str(case.adapter)).eval().get_base_model()
    feeds = {name: torch.tensor(values).float() for name, values in job.get("arrays", {}).items()}
    found: dict[str, Any] = {}
    if texts := job.get("texts"):
        side = "left" if case.task == "text-generation" else "right"
        tokenizer = transformers.AutoTokenizer.from_pretrained(case.base, padding_side=side)
        feeds = dict(tokenizer(texts, return_tensors="pt", padding=True))
        found["input_ids"] = feeds["input_ids"].tolist()
        found["mask"] = feeds["attention_mask"].numpy()
    with torch.no_grad():
        if entry.causal or entry.encoder_decoder:
            found["tokens"] = _written(model, feeds)
            return found
        outputs = model(**feeds)
    found |= {name: getattr(outputs, name).numpy() for name in entry.outputs if not entry.pooled}
    if entry.pooled:
        found["embeddings"] = _mean(outputs.last_hidden_state.numpy(), found["mask"])
    return found


def _written(model: Any, feeds: dict[str, torch.Tensor]) -> list[list[int]]:
    rows = model.generate(**feeds, do_sample=False, max_new_tokens=COUNT)
    tokens: list[list[int]] = rows.tolist()
    return tokens


def _mean(states: Any, mask: Any) -> Any:
    """Return normalized means ``[batch, hidden]`` of states ``[batch, sequence, hidden]``."""
    wide = mask[..., None].astype(np.float64)
    means = (states * wide).sum(1) / wide.sum(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def require_same(result: dict[str, Any], wanted: dict[str, Any], tolerance: float = 1e-4) -> None:
    """Require of a client's result that it is what torch made: tokens equal, arrays close."""
    assert "error" not in result, result["error"]
    mask = wanted.get("mask")
    for name, value in wanted.items():
        if name == "input_ids":
            assert result[name] == value
        elif name == "tokens":
            assert list(map(_ended, result[name])) == list(map(_ended, value))
        elif name != "mask":
            actual, reference = np.asarray(result[name]), np.asarray(value)
            assert actual.shape == reference.shape, name
            if mask is not None and reference.shape[:2] == mask.shape:
                actual, reference = actual[mask == 1], reference[mask == 1]
            distance = np.linalg.norm(actual - reference)
            assert distance <= tolerance * np.linalg.norm(reference), (name, distance)


def _ended(row: list[int]) -> list[int]:
    """Return a row up to the first end of a text behind its beginning."""
    ends = [at for at, token in enumerate(row) if token == _END and at > 0]
    return row[: ends[0] + 1] if ends else row
