"""A ``tokenizer.json`` from somebody's folder, run by ``tokenizers`` within limits.

The file is a program: patterns, replacements, templates. The library is written in Rust; where a
pattern takes too long (``(a+)+$``) or a table is wrong it panics, which reaches Python as an
exception that no ``except Exception`` sees, and writes to stderr; a replacement may keep it busy
for hours. So each call runs in a thread of its own, for a minute at most, and every failure is one
error.
"""

from __future__ import annotations

import contextlib
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.checkpoint_tables import read_checkpoint_table
from lora_export.core.errors import InputError
from lora_export.core.shown_value import first_line
from lora_export.ondevice.file_opening import read_file, reason_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["TextTokenizer"]

_LIMIT_BYTES: Final = 1 << 28
_LIMIT_S: Final = 60.0
_BATCH: Final = 256
_STDERR: Final = 2
_HINT: Final = "The base needs a tokenizer.json beside its weights that tokenizers can run."


class TextTokenizer:
    """The tokenizer of a base or an adapter; nothing is filled up to a length.

    Attributes:
        pad_id: The token that its own settings fill with; 0 without any.
    """

    def __init__(self, path: Path) -> None:
        """Read `path`.

        Raises:
            InputError: It cannot be read, or is damaged.
        """
        import tokenizers

        self._path = path
        table = read_checkpoint_table(
            path, _LIMIT_BYTES, InputError, absent=_HINT, damaged=_HINT, kind="tokenizer.json"
        )
        self.pad_id = int((table.get("padding") or {}).get("pad_id") or 0)
        try:
            data = read_file(path, _LIMIT_BYTES)
        except OSError as error:
            msg = f"cannot read {str(path)!r}: {reason_of(error)}"
            raise InputError(msg, hint=_HINT) from error
        self._inner: Any = self._run(lambda: tokenizers.Tokenizer.from_buffer(data), "cannot read")
        self._inner.no_padding()

    @property
    def longest(self) -> int | None:
        """The most tokens of a text; None for any number."""
        truncation = self._inner.truncation
        return None if truncation is None else int(truncation["max_length"])

    @property
    def tells_words_by_spaces(self) -> bool:
        """Whether the space before a word is part of it, as in byte-level BPE.

        Words that are given one by one have none; transformers asks for ``add_prefix_space`` then.
        """
        splitter = self._inner.pre_tokenizer
        return splitter is not None and b'"ByteLevel"' in splitter.__getstate__()

    def cut_to(self, longest: int | None, **settings: Any) -> None:
        """Cut texts to so many tokens; None for any number."""
        if longest is None:
            self._inner.no_truncation()
        else:
            self._run(lambda: self._inner.enable_truncation(longest, **settings), "cannot cut with")

    def encode(self, texts: Sequence[Any], **settings: Any) -> list[Any]:
        """Return the encoding of each text, or pair of texts.

        Raises:
            InputError: The tokenizer fails, or takes longer than a minute for 256 texts.
        """
        found: list[Any] = []
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            encode = partial(self._inner.encode_batch, batch, **settings)
            found += self._run(encode, "cannot run")
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out.

        Raises:
            InputError: The tokenizer fails, or takes longer than a minute.
        """
        texts: list[str] = self._run(lambda: self._inner.decode_batch([list(ids)]), "cannot run")
        return texts[0]

    def _run(self, call: Callable[[], Any], failed: str) -> Any:
        """Return the result of `call`, in a thread of its own.

        Raises:
            InputError: It fails, or takes longer than a minute.
        """
        results: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001  (a panic of Rust is not an Exception)
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        with _without_stderr():
            thread.start()
            thread.join(_LIMIT_S)
        if results:
            return results[0]
        reason = first_line(errors[0]) if errors else f"it takes longer than {_LIMIT_S:.0f} s"
        msg = f"{failed} the tokenizer {str(self._path)!r}: {reason}"
        raise InputError(msg, hint=_HINT) from (errors[0] if errors else None)


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Send what is written to the descriptor of stderr nowhere: Rust writes its panics there."""
    try:
        kept = os.dup(_STDERR)
    except OSError:  # there is none
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDERR)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
