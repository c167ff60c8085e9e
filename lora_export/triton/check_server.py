"""A running server compared with its model repository."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import ExportDirectoryError, InputError, UsageError
from lora_export.triton.protobuf_schema import CONFIG_NAME, data_type_name, parse_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["server_problems"]

_SECONDS: Final = 10
_LIMIT_BYTES: Final = 1 << 24


def server_problems(url: str, repository: Path, models: Sequence[str]) -> dict[str, list[str]]:
    """Return the differences between a server and its repository.

    Args:
        url: Its HTTP address (``http://localhost:8000``).
        repository: The repository.
        models: The models to ask for.

    Raises:
        UsageError: `url` is not an HTTP address.
        ExportDirectoryError: Nobody answers there.
    """
    address = url if "://" in url else f"http://{url}"
    if urllib.parse.urlsplit(address).scheme not in {"http", "https"}:
        msg = f"{url!r} is not an HTTP address"
        raise UsageError(msg, hint="Give the server's HTTP port: http://localhost:8000")
    if _get(address, "v2/health/live") is None:
        msg = f"no Triton server answers at {url!r}"
        raise ExportDirectoryError(msg, hint="Is it running, and is this its HTTP port?")
    return {name: _compare(address, repository, name) for name in models}


def _compare(address: str, repository: Path, name: str) -> list[str]:
    quoted = urllib.parse.quote(name, safe="")
    if _get(address, f"v2/models/{quoted}/ready") is None:
        return ["the server has it not ready"]
    try:
        own = parse_config(repository / name / CONFIG_NAME)
    except InputError:
        return []  # found already
    try:
        return _differences(own, json.loads(_get(address, f"v2/models/{quoted}/config") or b"{}"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["the server does not say its configuration"]


def _differences(own: Any, served: Any) -> list[str]:
    """Return in what the configuration that a server has differs from that of the repository."""
    found = []
    if served.get("max_batch_size") != own.max_batch_size:
        found.append(f"the server has max_batch_size {served.get('max_batch_size')}")
    for kind, tensors in (("input", own.input), ("output", own.output)):
        there = {each["name"]: _facts(each) for each in served.get(kind, [])}
        here = {each.name: (data_type_name(each.data_type), tuple(each.dims)) for each in tensors}
        found += [
            f"{kind} {each!r} is {there.get(each)} in the server, {here.get(each)} here"
            for each in sorted(there.keys() | here.keys())
            if there.get(each) != here.get(each)
        ]
    return found


def _facts(tensor: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    return tensor["data_type"], tuple(int(each) for each in tensor["dims"])


def _get(address: str, path: str) -> bytes | None:
    """Return the answer to a GET; None if it fails."""
    try:
        with urllib.request.urlopen(f"{address.rstrip('/')}/{path}", timeout=_SECONDS) as answer:  # noqa: S310  (http and https)
            data: bytes = answer.read(_LIMIT_BYTES)
            return data
    except (urllib.error.URLError, OSError, ValueError):
        return None
