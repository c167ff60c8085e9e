"""Objects behind a URL that fsspec opens: ``s3://bucket/prefix``, ``gs://…``, ``hf://…``.

fsspec's errors, and those of the libraries below it, have no common class: they are translated
here.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import (
    LoraExportError,
    MissingRuntimeError,
    StorageError,
    UsageError,
)
from lora_export.core.files import is_relative_inside
from lora_export.core.installation import install_command

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

__all__ = ["UrlObjects", "is_url"]

_URL: Final = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<path>[^?#]+)")
_SECONDS: Final = 10
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "s3": {
        "max_concurrency": 2,  # an upload holds so many parts of 50 MB
        "config_kwargs": {"connect_timeout": _SECONDS, "retries": {"max_attempts": 3}},
    }
}
_HINT: Final = "Check the address, the credentials and the rights of the store, then run again."
_SAID: Final = 300


def is_url(text: str) -> bool:
    """Return whether a store is behind a URL.

    >>> is_url("s3://bucket/prefix"), is_url("out/s3")
    (True, False)
    """
    return _URL.fullmatch(text) is not None


class UrlObjects:
    """See `lora_export.fleet.store.objects.Objects`.

    Args:
        url: Where they are.

    Raises:
        UsageError: fsspec knows no such protocol.
        MissingRuntimeError: The library of the protocol is not installed.
        StorageError: The storage cannot be opened.
    """

    def __init__(self, url: str) -> None:
        found = _URL.fullmatch(url)
        if found is None:
            msg = f"the store {url!r} is not a URL such as s3://bucket/prefix"
            raise UsageError(msg, hint="Give PROTOCOL://BUCKET/PREFIX, or a directory.")
        self._url = url.rstrip("/")
        protocol = found["protocol"]
        try:
            import fsspec

            options = {**_OPTIONS.get(protocol, {}), "use_listings_cache": False}
            self._files: Any = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
            self._root = str(self._files._strip_protocol(self._url))  # noqa: SLF001  (fsspec's own)
        except ImportError as error:
            msg = f"the store {url!r} needs a library that is not installed: {error}"
            raise MissingRuntimeError(
                msg, hint=f"Install it {install_command('stores')}"
            ) from error
        except ValueError as error:
            msg = f"the store {url!r} cannot be opened: {error}"
            raise UsageError(msg, hint="Give s3://BUCKET/PREFIX, or a directory.") from error
        except Exception as error:  # fsspec's drivers raise what they like
            raise _refused("open", self._url, error) from error

    @property
    def place(self) -> str:
        """The URL."""
        return self._url

    def upload(self, source: Path, name: str) -> None:
        """Store a file under a name, in place of what was there."""
        with self._translated("write", name):
            self._files.put_file(str(source), self._path(name))

    def write(self, name: str, data: bytes) -> None:
        """Store bytes under a name, in place of what was there."""
        with self._translated("write", name):
            self._files.pipe_file(self._path(name), data)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Return an object of at most so many bytes; None where there is none."""
        size = self.size(name)
        if size is None:
            return None
        if size > limit_bytes:
            msg = f"{name!r} in the store {self._url!r} has {size} bytes, not {limit_bytes} at most"
            raise StorageError(msg, hint="Remove it, and run again.")
        with self._translated("read", name):
            return bytes(self._files.cat_file(self._path(name)))

    def download(self, name: str, target: Path) -> bool:
        """Copy an object to a new file; return False where there is none."""
        try:
            with self._translated("read", name):
                self._files.get_file(self._path(name), str(target))
        except FileNotFoundError:
            return False
        return True

    def size(self, name: str) -> int | None:
        """Return the bytes of an object; None where there is none."""
        try:
            with self._translated("look up", name):
                found = self._files.info(self._path(name))
        except FileNotFoundError:
            return None
        return int(found["size"] or 0) if found.get("type") == "file" else None

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of each object whose name starts with ``prefix/``."""
        try:
            with self._translated("list", prefix):
                table = self._files.find(self._path(prefix), detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        return {name[start:]: int(each["size"] or 0) for name, each in sorted(table.items())}

    def remove(self, names: Collection[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        for name in names:
            with contextlib.suppress(FileNotFoundError), self._translated("remove", name):
                self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        if not is_relative_inside(name):
            msg = f"the name {name!r} leads out of the store {self._url!r}"
            raise StorageError(msg, hint="The record that names it is damaged: run again.")
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _translated(self, what: str, name: str) -> Iterator[None]:
        """Translate the errors of a driver, but for the absence of an object."""
        try:
            yield
        except (FileNotFoundError, LoraExportError):
            raise
        except Exception as error:
            raise _refused(what, f"{self._url}/{name}", error) from error


def _refused(what: str, where: str, error: Exception) -> StorageError:
    said = str(error)[:_SAID] or type(error).__name__
    return StorageError(f"the store refuses to {what} {where!r}: {said}", hint=_HINT)
