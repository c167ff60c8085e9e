"""Write ``data/witnesses.json``: a tiny model for each template, run by torch.

Usage: python -m tools.templates.witnesses [FAMILY...]

Without a family it writes all of them anew; with some, witnesses of others stay as they are.

The reference is the plain model of transformers, eager and without a cache; nothing of the trace.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
import transformers

from lora_export.graph.spec.onnx_file import parse_onnx
from lora_export.graph.spec.signature import PAST, read_signature
from lora_export.graph.spec.tasks import by_name
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import match
from lora_export.graph.templates.shipped import DATA, instance_of, read_index
from lora_export.graph.templates.witness import WITNESSES, inputs_of, read_witnesses, value_of
from tools.templates.probes import config_of


def main() -> None:
    """Write the witnesses of the families that are named, or of all templates."""
    families, rows_read = sys.argv[1:], read_index()["templates"]
    kept = read_witnesses() if families else {}
    found = {
        row["file"]: kept[row["file"]]
        if families and row["model_type"] not in families
        else witness(row)
        for row in rows_read
    }
    rows = (
        f"{json.dumps(name)}: {json.dumps(found[name], sort_keys=True)}" for name in sorted(found)
    )
    (DATA / WITNESSES).write_text("{" + ",\n".join(rows) + "}\n")


def witness(row: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a template's witness and what torch computes."""
    family, task = FAMILIES[row["model_type"]], by_name(row["task"])
    config = config_of(family, 3, row["choices"], labels=bool(task.label_parameters))
    template = instance_of(row, match(family, config))
    parsed = transformers.AutoConfig.for_model(**config)
    model = getattr(transformers, task.auto_class).from_config(
        parsed, dtype=getattr(torch, row["dtype"]), attn_implementation="eager"
    )
    values = {each.name: torch.from_numpy(value_of(each)) for each in template.parameters}
    for parameter in template.parameters:
        values |= dict.fromkeys(parameter.aliases, values[parameter.name])
    read = model.load_state_dict(values, strict=False)
    unread = [name for name in read.missing_keys if "pooler" not in name and "bias" not in name]
    if read.unexpected_keys or unread:
        msg = f"{row['file']}: {read}"
        raise ValueError(msg)
    signature = read_signature(parse_onnx(template.onnx_bytes)).inputs
    inputs = inputs_of({each.name: each for each in signature})
    given = {
        name: torch.from_numpy(value) for name, value in inputs.items() if not name.startswith(PAST)
    }
    with torch.inference_mode():
        output = model.eval()(**given)
    result = getattr(output, task.output if not task.pooled else "last_hidden_state")
    array = result.float().numpy()
    if task.pooled:
        array = _pooled(array, row["sentence"])
    return {
        "config": config,
        "shape": list(array.shape),
        "output": [float(f"{value:.9g}") for value in array.ravel()],
    }


def _pooled(states: Any, sentence: str) -> Any:
    """Return the sentence embedding, in NumPy; every token counts."""
    mode, *rest = sentence.split(", ")
    pooled = states.mean(axis=1) if mode == "mean" else states[:, 0]
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True) if rest else pooled


if __name__ == "__main__":
    main()
