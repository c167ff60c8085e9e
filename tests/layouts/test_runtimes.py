"""The lines that say how a directory is opened."""

from __future__ import annotations

import pytest

from lora_export.graph.spec.tasks import TASKS
from lora_export.layouts.optimum import OPTIMUM_CLASSES
from lora_export.layouts.runtimes import RUNTIMES


def test_lines_are_those_of_the_task() -> None:
    shown = {
        name: each.opening_of("fill-mask").format(folder="'d'") for name, each in RUNTIMES.items()
    }
    assert shown == {
        "genai": "og.Model('d')",
        "optimum": "ORTModelForMaskedLM.from_pretrained('d')",
        "sentence-transformers": "SentenceTransformer('d', backend=\"onnx\")",
        "transformers.js": "await pipeline('fill-mask', 'd')",
    }


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"image-feature-extraction"}))
def test_optimum_has_a_class_for_each_task(task: str) -> None:
    assert OPTIMUM_CLASSES[task].startswith("ORTModelFor")
