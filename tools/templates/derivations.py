"""``python -m tools.templates.derivations [FAMILY...]``: what templates are made into, proven.

For each template and each further opset or dtype: the instance of a probe's config is compared with
its trace, byte by byte, and the row of the index names it then. What is named already stays.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import LoraExportError
from lora_export.graph.graph_export import settings_of
from lora_export.graph.spec.signature import Choices
from lora_export.graph.spec.tasks import by_name
from lora_export.graph.template_build import build_template
from lora_export.graph.templates.families import FAMILIES
from lora_export.graph.templates.matching import NoTemplateError, match
from lora_export.graph.templates.shipped import instance_of
from tools.templates.index_file import read_rows, write_row
from tools.templates.probes import config_of
from tools.templates.subjects import sentence_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["derivations", "is_trace"]

_OPSETS: Final[dict[int, tuple[int, ...]]] = {20: (21, 19, 18, 22), 23: (24, 25)}
_FIRST: Final = {20: 21}
"""The opset of quantized graphs, which every template is compared with; the others, once."""


def derivations(row: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Yield dtype, opset and the number of a probe: all that a template may be made into."""
    first = _FIRST.get(row["opset"])
    opsets = _OPSETS.get(row["opset"], ())
    if first is not None:
        yield row["dtype"], first, 0
    if row["dtype"] == "float16" and FAMILIES[row["model_type"]].rotary:
        yield "bfloat16", row["opset"], 0
        if first is not None:
            yield "bfloat16", first, 2
    yield from ((row["dtype"], opset, 1) for opset in opsets if opset != first)


def is_trace(row: Mapping[str, Any], dtype: str, opset: int, number: int) -> bool:
    """Whether what a template makes of a probe's config is, byte by byte, what is traced."""
    family, task = FAMILIES[row["model_type"]], by_name(row["task"])
    config = config_of(family, number, row["choices"], labels=bool(task.label_parameters))
    matched = match(family, settings_of(config))
    try:
        made = instance_of(row, matched, dtype=dtype, opset=opset)
        traced = build_template(
            config, task, dtype, opset, Choices(), sentence=sentence_of(row["sentence"])
        )
    except (NoTemplateError, LoraExportError) as error:
        print(f"{row['file']} as {dtype}, opset {opset}: {error}", file=sys.stderr)
        return False
    return made.graphs == traced.graphs and made.describe() == traced.describe()


def prove(row: dict[str, Any], *, every: bool) -> dict[str, Any]:
    """Return the row with what the template is made into; the rarer opsets where `every`."""
    for dtype, opset, number in derivations(row):
        rare = dtype == row["dtype"] and opset != _FIRST.get(row["opset"])
        if [dtype, opset] in row.get("derived", ()) or (rare and not every):
            continue
        if not is_trace(row, dtype, opset, number):
            print(f"{row['file']}: {dtype}, opset {opset}: another graph", file=sys.stderr)
            continue
        row = {**row, "derived": sorted([*row.get("derived", ()), [dtype, opset]])}
        print(f"{row['file']}: {dtype}, opset {opset}", flush=True)
    return row


def main() -> int:
    """Compare, and write what was equal."""
    families = [each for each in sys.argv[1:] if not each.startswith("--")]
    for row in read_rows().values():
        if not families or row["model_type"] in families:
            proven = prove(row, every="--every" in sys.argv)
            if proven != row:
                write_row(proven)
    return 0


if __name__ == "__main__":
    sys.exit(main())
