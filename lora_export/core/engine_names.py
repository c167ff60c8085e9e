"""The names of engines and their records: ``engines/<graph>.<target>.<library><version>``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from lora_export.ondevice.trt.build_record import FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["engines_of"]

_NAME: Final = re.compile(
    rf"{FOLDER}/(?P<graph>[^/]+?)\.[^./]+\.(?:trt|rtx)\d[^/]*\.(?:plan|json|cache)"
)
"""``engines/<graph>.<target>.<library><version>``, and what may follow."""


def engines_of(graph: str, files: Iterable[str]) -> set[str]:
    """Return those of `files` that are engines of a graph, or their records.

    >>> sorted(engines_of("one", ["engines/one.l4.trt10.3.plan", "engines/one-b.l4.trt10.3.plan"]))
    ['engines/one.l4.trt10.3.plan']
    >>> engines_of("rtx", ["engines/rtx.rtx1.7.1.timing", "engines/one.rtx.rtx1.7.1.plan"])
    set()
    """
    stems = (graph, f"decoder.{graph}", f"encoder.{graph}")
    named = ((file, _NAME.fullmatch(file)) for file in files)
    return {file for file, found in named if found is not None and found["graph"] in stems}
