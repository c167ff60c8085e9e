"""Ranges of weight files, copied in blocks: one, or the rows of several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_export.core.tensors import BLOCK_BYTES, bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_export.core.tensors import FileHandle
    from lora_export.graph.spec.external_values import SideBySide, Source

__all__ = ["side_by_side_blocks"]


def side_by_side_blocks(
    handles: Mapping[str, FileHandle], content: SideBySide
) -> Iterator[memoryview]:
    """Yield the bytes of a part of a new file; each view is valid until the next one is asked for.

    Args:
        handles: The weight files by location.
        content: The ranges that the part is made of.

    Raises:
        InputError: A file ends before a range does.
    """
    first = content.sources[0]
    if len(content.sources) == 1:
        yield from _blocks(handles[first.location], first)
        return
    widths = [each.length_bytes // content.rows for each in content.sources]
    whole = max(1, BLOCK_BYTES // sum(widths))
    for start in range(0, content.rows, whole):
        count = min(whole, content.rows - start)
        block = np.empty((count, sum(widths)), np.uint8)
        column = 0
        for source, width in zip(content.sources, widths, strict=True):
            rows = np.empty((count, width), np.uint8)
            handle = handles[source.location]
            handle.read_into(bytes_of(rows), source.offset_bytes + start * width)
            block[:, column : column + width] = rows
            column += width
        yield bytes_of(block)


def _blocks(file: FileHandle, source: Source) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(BLOCK_BYTES, source.length_bytes)))
    for start in range(0, source.length_bytes, BLOCK_BYTES):
        block = buffer[: min(BLOCK_BYTES, source.length_bytes - start)]
        file.read_into(block, source.offset_bytes + start)
        yield block
