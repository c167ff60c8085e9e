"""A data set that is meant for some of an export's adapters: the others are named at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_export.core.errors import InputError, UsageError
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["require_fitting"]


def require_fitting(path: Path, adapters: Sequence[str], load: Callable[[str], object]) -> None:
    """Require that a data set fits each adapter that it is asked of, before any model is run.

    Args:
        path: The data set.
        adapters: The adapters that are to be verified.
        load: Reads the data set with the labels and the tokenizer of an adapter.

    Raises:
        InputError: It does not fit an adapter: a label that its head does not have, for instance.
            Where it fits others, the message names both.
        UsageError: As for `InputError`.
    """
    refusals = {name: _refusal(load, name) for name in adapters}
    fitting = [name for name, error in refusals.items() if error is None]
    refused = [(name, error) for name, error in refusals.items() if error is not None]
    if not refused:
        return
    name, error = refused[0]
    if not fitting:  # the file, not the choice of the adapters
        raise error
    flags = [part for each in fitting for part in ("--only", each)]
    command = shell_command(
        ["lora-export", "verify", "EXPORT", "--base", "BASE", "--dataset", str(path), *flags]
    )
    known = f"{error.hint} " if error.hint else ""
    msg = f"the data set does not fit the adapter {name!r}: {error.message}"
    raise type(error)(msg, hint=f"{known}Verify those that it fits: {command}") from error


def _refusal(load: Callable[[str], object], name: str) -> InputError | UsageError | None:
    """Return the error that says why a data set does not fit an adapter; None where it fits."""
    try:
        load(name)
    except (InputError, UsageError) as error:
        return error
    return None
