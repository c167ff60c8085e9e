"""A reader as the fuzz sees it: valid inputs, ways to change them, and a function that reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lora_export.core.errors import LoraExportError

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

__all__ = ["Files", "Mutator", "Reader", "Target"]

Files: TypeAlias = Mapping[str, bytes]
"""An input: the contents of files by their names."""

Mutator: TypeAlias = "Callable[[Random, bytes], bytes]"
"""Returns what a file may hold instead."""


@dataclass(frozen=True)
class Target:
    """A reader that is ready.

    Attributes:
        seeds: Valid inputs.
        mutators: By the name of a file, the ways in which it is changed; files without any stay.
        read: Reads an input, which lies in this folder.
    """

    seeds: tuple[Files, ...]
    mutators: Mapping[str, tuple[Mutator, ...]]
    read: Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """A row of the table of readers.

    Attributes:
        prepare: Returns the reader; the folder is for files that stay as they are.
        errors: The classes of errors by which it may refuse an input.
        slowness: How many times as long as others an input takes, for the number of inputs in
            tests.
    """

    prepare: Callable[[Path], Target]
    errors: tuple[type[Exception], ...] = (LoraExportError,)
    slowness: int = 1
