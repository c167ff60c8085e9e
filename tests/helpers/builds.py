"""Exports built through the pipeline, and what is read back from them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import numpy_helper

from lora_export.commands.build import merge_and_build
from lora_export.commands.recipe import make_recipe
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.manifest import read_manifest
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from lora_export.commands.outcome import Outcome

__all__ = ["build", "file_hashes", "merged_by_peft", "model_values", "read_graph", "spec"]


def spec(name: str, source: Path) -> AdapterSpec:
    """Return an adapter as `add` is told of it."""
    return AdapterSpec(name=name, source=str(source))


def build(
    base: Path,
    adapters: Mapping[str, Path | Mapping[str, Any]],
    output: Path,
    **settings: Any,
) -> Outcome:
    """Run ``merge-and-build`` on `base` and `adapters` (name → folder, or keys of an adapter).

    Nothing is verified or measured unless `settings`, the recipe's other keys, say so.
    """
    specs = [
        {"name": name, **(dict(spec) if not isinstance(spec, Path) else {"source": str(spec)})}
        for name, spec in adapters.items()
    ]
    table = {
        "base": str(base),
        "adapters": specs,
        "output": str(output),
        "verify": {"enabled": False},
        "latency": {"enabled": False},
        **settings,
    }
    return merge_and_build(make_recipe(table, folder=Path("/")))


def read_graph(export_dir: Path, graph: str) -> dict[str, np.ndarray]:
    """Return each parameter of a graph in the model's layout, as the graph's file points at it."""
    manifest = read_manifest(export_dir)
    model = onnx.load(export_dir / manifest.graphs[graph].onnx)
    values = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    found: dict[str, np.ndarray] = {}
    for uses in manifest.parameters.values():
        for use in uses:
            value = values[use.initializer]
            found[use.initializer] = value.T if "transpose" in use.transform else value
    return found


def model_values(model: Any) -> dict[str, np.ndarray]:
    """Return the state of a torch model in float64 (integers as they are)."""
    return {
        name: (value.detach().double() if value.is_floating_point() else value).numpy()
        for name, value in model.state_dict().items()
    }


def merged_by_peft(
    base: Path, adapter: Path, task: str, *, labels_count: int | None = 3
) -> dict[str, np.ndarray]:
    """Return the state after PEFT's own ``merge_and_unload``, computed in float64."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_tiny(base, task, labels_count=labels_count, dtype="float32")
        wrapped = peft.PeftModel.from_pretrained(model, str(adapter)).double()
        return model_values(wrapped.merge_and_unload())


def file_hashes(export_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below `export_dir`, locks left out."""
    from lora_export.core.files import sha256_of_file

    return {
        path.relative_to(export_dir).as_posix(): sha256_of_file(path)
        for path in sorted(export_dir.rglob("*"))
        if path.is_file() and not path.name.startswith(".lora")
    }
