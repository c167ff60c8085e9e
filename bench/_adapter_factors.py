"""Survival of an adapter at four bits, by the factor of its scale: JSON by mode and factor."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from lora_export.core.reports.quantization_report import QuantizationRow

RECIPE = Path(__file__).resolve().parents[1] / "recipes/minilm-intents/recipe.yaml"
FACTORS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02)


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for mode in ("merged", "swappable"):
        for factor in FACTORS:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(recipe_of(mode, factor, Path(folder) / "out"))
            found[f"{mode}, {factor:g}"] = figures(row)
    print(json.dumps(found))


def recipe_of(mode: str, factor: float, output: Path) -> Recipe:
    table = {
        "mode": mode, "quantize": "int4", "output": str(output), "scale": {"intents": factor},
        "latency": {"enabled": False}, "bundle": {"enabled": False},
    }  # fmt: skip
    return load_recipe(RECIPE, table)


def measure(recipe: Recipe) -> QuantizationRow:
    report = merge_and_build(recipe).reports.quantization
    assert report is not None
    shared = report.graphs.get("swappable")
    return report.graphs["intents"] if shared is None else shared.adapters["intents"]


def figures(row: QuantizationRow) -> dict[str, Any]:
    loss, scored = row.loss, row.dataset
    assert loss is not None
    assert scored is not None
    ratios = [e.error_over_delta for e in row.layers.values() if e.error_over_delta is not None]
    return {
        "verdict": row.verdict,
        "effect": loss.effect,
        "gain": loss.gain,
        "cosine": loss.cosine,
        "exact_cosine": loss.exact_cosine,
        "relative_l2": loss.relative_l2,
        "mean_kl": loss.mean_kl,
        "largest_error_over_delta": max(ratios),
        "accuracy": {"float": scored.reference, "quantized": scored.graph},
        "changed_share": scored.disagreements / scored.count,
    }


if __name__ == "__main__":
    main()
