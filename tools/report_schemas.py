"""Write the JSON schema of every report and record to ``docs/schemas``.

Usage: python -m tools.report_schemas

A schema follows from the pydantic model; the descriptions are those of the model's docstring. A
test compares the files with the models.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic.json_schema import GenerateJsonSchema

from lora_export.core.engine_record import EngineRecord
from lora_export.core.layout_record import LayoutRecord
from lora_export.core.merge_record import MergeRecord
from lora_export.core.reports.fidelity_report import FidelityReport
from lora_export.core.reports.graph_report import GraphReport
from lora_export.core.reports.latency_report import LatencyReport
from lora_export.core.reports.parity_report import ParityReport
from lora_export.core.reports.quantization_report import QuantizationReport
from lora_export.latency.bench_report import BenchReport

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import core_schema

__all__ = ["SCHEMAS", "main", "schema_text"]

FOLDER: Final = Path(__file__).parents[1] / "docs/schemas"
SCHEMAS: Final[dict[str, tuple[str, type[BaseModel]]]] = {
    "parity": ("reports/parity.json", ParityReport),
    "latency": ("reports/latency.json", LatencyReport),
    "fidelity": ("reports/fidelity.json", FidelityReport),
    "quantization": ("reports/quantization.json", QuantizationReport),
    "graph": ("reports/graph.json", GraphReport),
    "bench": ("reports/bench.json", BenchReport),
    "engine": ("engines/<graph>.<target>.trt<version>.json", EngineRecord),
    "merge": ("lora_export.merge.json", MergeRecord),
    "layout": ("lora_export_layout.json", LayoutRecord),
}
"""Name of the schema → the file that it describes, and the model."""

_ATTRIBUTE: Final = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


class _Described(GenerateJsonSchema):
    """Schemas with the summary of each class, and the description of each attribute."""

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        found = super().model_schema(schema)
        summary, _, attributes = inspect.cleandoc(schema["cls"].__doc__ or "").partition(
            "Attributes:\n"
        )
        found["description"] = " ".join(summary.split())
        for name, text in _ATTRIBUTE.findall(attributes):
            if name in found.get("properties", {}):
                found["properties"][name]["description"] = " ".join(text.split())
        return found


def schema_text(name: str) -> str:
    """Return the schema called `name` as the text of its file."""
    file, model = SCHEMAS[name]
    schema = model.model_json_schema(schema_generator=_Described)
    schema["title"] = file
    dialect = {"$schema": GenerateJsonSchema.schema_dialect}
    return json.dumps({**dialect, **schema}, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every schema."""
    FOLDER.mkdir(exist_ok=True)
    for name in SCHEMAS:
        path = FOLDER / f"{name}.schema.json"
        path.write_text(schema_text(name), "utf-8")
        print(f"{path.name}: {SCHEMAS[name][0]}")


if __name__ == "__main__":
    main()
