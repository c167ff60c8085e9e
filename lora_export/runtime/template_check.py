"""The templates that ship with the package, run: each gives what torch computed, or it is named."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lora_export.core.errors import LoraExportError
from lora_export.graph.templates.matching import NoTemplateError
from lora_export.graph.templates.shipped import read_index
from lora_export.graph.templates.witness import open_witness, read_witnesses
from lora_export.runtime.ort import OrtRunner, require_onnxruntime

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TemplateCheck", "check_templates", "witness_error"]

TOLERANCES: Final = {"float32": 1e-5, "float16": 5e-3}
"""The relative L2 error that a witness may have: that of a verification."""


@dataclass(frozen=True)
class TemplateCheck:
    """The result of a check.

    Attributes:
        templates: How many templates there are.
        checked: How many were run.
        failed: Those that cannot be made or run, or give something else, each with the reason.
    """

    templates: int
    checked: int
    failed: tuple[str, ...]


def check_templates(*, every: bool) -> TemplateCheck:
    """Make the witnesses' graphs and run them: all, or the first of each architecture.

    Raises:
        MissingRuntimeError: ONNX Runtime is not installed.
    """
    require_onnxruntime()
    try:
        rows, witnesses = read_index()["templates"], read_witnesses()
    except NoTemplateError as error:
        return TemplateCheck(0, 0, (str(error),))
    first = {row["model_type"]: row for row in reversed(rows)}
    chosen = rows if every else list(first.values())
    failed = []
    for row in chosen:
        reason = _failure(row, witnesses)
        if reason is not None:
            failed.append(f"{row['file']}: {reason}")
    return TemplateCheck(len(rows), len(chosen), tuple(failed))


def _failure(row: Mapping[str, Any], witnesses: Mapping[str, Any]) -> str | None:
    if row["file"] not in witnesses:
        return "it has no witness"
    try:
        error = witness_error(row, witnesses[row["file"]])
    except (NoTemplateError, LoraExportError) as failure:
        return str(failure)
    limit = TOLERANCES[row["dtype"]]
    return None if error <= limit else f"relative error {error:.1e}, limit {limit:.0e}"


def witness_error(row: Mapping[str, Any], table: Mapping[str, Any]) -> float:
    """Return the relative L2 error of a template's witness in ONNX Runtime.

    Raises:
        NoTemplateError: The template is damaged.
        LoraExportError: ONNX Runtime is missing, or refuses the graph.
    """
    witness = open_witness(row, table)
    with tempfile.TemporaryDirectory(prefix="lora-export-") as folder:
        path = Path(folder, "witness.onnx")
        path.write_bytes(witness.onnx_bytes)
        runner = OrtRunner(path)
        try:
            output = next(iter(runner.run(witness.inputs).values())).astype(np.float32)
        finally:
            runner.close()
    if output.shape != witness.expected.shape:
        return float("inf")
    difference = np.linalg.norm(output - witness.expected)
    return float(difference / np.linalg.norm(witness.expected))
