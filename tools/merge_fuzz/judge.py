"""Run one case: train, merge, compare with the trained model."""

from __future__ import annotations

import json
import re
import shutil
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file

from lora_export.commands.merge import merge_checkpoint
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import LoraExportError
from tools.merge_fuzz.adapters import edit_config, scale_layers, train
from tools.merge_fuzz.bases import load
from tools.merge_fuzz.combining import combined
from tools.merge_fuzz.feeds import make_feeds, outputs_of
from tools.merge_fuzz.names import rewrite

if TYPE_CHECKING:
    from pathlib import Path

    from lora_export.commands.merge import Merge
    from tools.merge_fuzz.bases import Base
    from tools.merge_fuzz.cases import Case

__all__ = [
    "FAULTS",
    "Outcome",
    "Trained",
    "adapter_rows",
    "judge_merge",
    "kind_of",
    "relative_error",
    "train_case",
]

FAULTS: Final = frozenset({"DIFFERENT", "CRASH", "ROUNDING", "UNLOADABLE"})
"""Outcomes that are faults; the others are ``equal``, ``refused``, ``noted``, ``vacuous``."""

_UNREAD: Final = "PEFT's unmerged forward ignores them"
"""The note on modules whose update PEFT applies in a merge alone."""

_TOLERANCE: Final = 1e-4
_LEAST_EFFECT: Final = 1e-3
_QUOTED: Final = re.compile(r"\([^)]*\)|'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a case.

    Attributes:
        kind: ``equal``, ``refused``, ``vacuous`` (the adapter changes nothing that is seen),
            ``noted`` (it differs, and a note of the merge says why), or one of `FAULTS`.
        detail: The message of a refusal without its names and numbers; the error of a fault.
        message: The whole message.
        error: The relative L2 error against the trained model.
        effect: The relative L2 distance of the trained model from the base.
    """

    kind: str
    detail: str = ""
    message: str = ""
    error: float | None = None
    effect: float | None = None


@dataclass(frozen=True)
class Trained:
    """An adapter on disk, and what the model that it was trained in computes.

    Attributes:
        folder: The adapter's files.
        model: The trained model, PEFT's layers in it.
        feeds: Inputs.
        expected: The model's outputs.
        effect: Their relative L2 distance from the base's.
    """

    folder: Path
    model: Any
    feeds: Any
    expected: torch.Tensor
    effect: float


def train_case(case: Case, base: Base, folder: Path, *, seed: int) -> Trained:
    """Train the adapter of a case in `folder` and run the trained model.

    Raises:
        Exception: PEFT refuses the settings, whatever it raises.
    """
    shutil.rmtree(folder, ignore_errors=True)
    how, spec, second = case.combine, case.adapter, folder.with_name("second")

    def feed(model: Any) -> Any:
        return make_feeds(model, seed)

    wrapped = train(base.model, spec, folder, base.folder, feed)
    if how is None:
        scale_layers(wrapped, case.scale)
    else:
        wrapped = combined(
            base.model,
            how,
            spec,
            (folder, second),
            base=base.folder,
            feeds=feed,
            scale=case.scale,
        )
    inner = wrapped.get_base_model()
    feeds = make_feeds(inner, seed)
    expected = outputs_of(inner, feeds)
    plain = {**make_feeds(base.model, seed)} if case.adapter.grown else feeds
    effect = relative_error(outputs_of(base.model, plain), expected)
    for each in (folder, second) if how else (folder,):
        rewrite(each, wrapper=case.wrapper, dtype=spec.dtype, as_bin=case.as_bin)
    if case.flip_fan:
        config = json.loads((folder / "adapter_config.json").read_text())
        edit_config(folder, {"fan_in_fan_out": not config["fan_in_fan_out"]})
    return Trained(folder, inner, feeds, expected, effect)


def judge_merge(case: Case, base: Base, trained: Trained, folder: Path) -> Outcome:
    """Merge, load the result with transformers, compare."""
    half = {case.base.dtype, case.adapter.dtype} != {"float32"}
    try:
        notes = merge(case, base, trained.folder, folder / "merged", dtype="float32").notes
        if half:
            merge(case, base, trained.folder, folder / "rounded", dtype=None)
    except LoraExportError as error:
        return Outcome("refused", kind_of(error), f"{error.message} | {error.hint}")
    except Exception as error:  # noqa: BLE001  (whatever it is, it is a fault)
        return Outcome("CRASH", kind_of(error), traceback.format_exc()[-1500:])
    outcome = _compare(case, trained, folder / "merged")
    if outcome.kind == "DIFFERENT" and any(_UNREAD in note for note in notes):
        return replace(outcome, kind="noted")
    if half and outcome.kind == "equal":
        return _compare_rounding(folder / "merged", folder / "rounded") or outcome
    return outcome


def merge(case: Case, base: Base, adapter: Path, output: Path, *, dtype: str | None) -> Merge:
    """Merge with this project's own code."""
    shutil.rmtree(output, ignore_errors=True)
    return merge_checkpoint(
        base.folder,
        [AdapterSpec.model_validate(row) for row in adapter_rows(case, adapter)],
        output,
        combine=case.combine.spec if case.combine else None,
        dtype=dtype,
    )


def adapter_rows(case: Case, adapter: Path) -> list[dict[str, Any]]:
    """Return the adapters of a case as the rows of a recipe."""
    folders = {"a": adapter, **({"b": adapter.with_name("second")} if case.combine else {})}
    return [
        {"name": name, "source": str(folder), "scale": case.scale}
        for name, folder in folders.items()
    ]


def kind_of(error: BaseException) -> str:
    """Return an error's class and message without names and numbers."""
    text = getattr(error, "message", None) or str(error)
    first = _QUOTED.sub("…", text.splitlines()[0] if text else "")
    return f"{type(error).__name__}: {re.sub('…(, …)+', '…', first)}"


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ``‖found − expected‖ / ‖expected‖``; infinity where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).norm() / expected.norm())


def _compare(case: Case, trained: Trained, merged: Path) -> Outcome:
    try:
        model, info = load(merged, case.base.head)
        found = outputs_of(model, trained.feeds)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is a fault)
        return Outcome("UNLOADABLE", kind_of(error), traceback.format_exc()[-1500:])
    apart = relative_error(found, trained.expected)
    if not apart <= _TOLERANCE:
        keys = {key: sorted(map(str, info[key]))[:4] for key in info if info[key]}
        return Outcome("DIFFERENT", f"by {apart:.2g}", str(keys), apart, trained.effect)
    kind = "equal" if trained.effect > _LEAST_EFFECT else "vacuous"
    return Outcome(kind, error=apart, effect=trained.effect)


def _compare_rounding(exact: Path, rounded: Path) -> Outcome | None:
    """Require of every tensor to be the float32 one, rounded to its dtype."""
    one, two = (_tensors(folder) for folder in (exact, rounded))
    if one.keys() != two.keys():
        return Outcome("ROUNDING", "other tensors", str(sorted(one.keys() ^ two.keys())[:6]))
    for name, value in two.items():
        if not torch.equal(one[name].to(value.dtype), value):
            return Outcome("ROUNDING", "other values", name)
    return None


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: value
        for path in sorted(folder.glob("*.safetensors"))
        for name, value in load_file(path).items()
    }
