"""Requests for graphs as the graph cache keeps them, and how two of them differ."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.shown_value import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Request", "difference", "version_numbers"]

_ABSENT: Final = "absent"
_NAMED_LIMIT: Final = 5


@dataclass(frozen=True)
class Request:
    """A graph that is asked for.

    Attributes:
        config: The settings of ``config.json`` that the graph may depend on.
        task: The task's name.
        dtype: The parameters' dtype.
        opset: The ONNX opset.
        choices: The chosen interface.
    """

    config: Mapping[str, Any]
    task: str
    dtype: str
    opset: int
    choices: Mapping[str, Any]

    @property
    def model_type(self) -> str:
        """``model_type`` of the config, as a word for messages."""
        return shown(self.config.get("model_type"))

    def describe(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        described: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return described


def difference(request: Request, cached: Iterable[Any]) -> str | None:
    """Return the keys in which the nearest cached request of the same model type differs.

    Args:
        request: The request that the cache has no graph for.
        cached: `Request.describe` of graphs in the cache, as they were read.

    Returns:
        ``""`` where one is equal, None where none is of the model type.

    >>> asked = Request({"model_type": "bert", "hidden_size": 32}, "fill-mask", "float32", 18, {})
    >>> small = asked.describe() | {"config": {"model_type": "bert", "hidden_size": 64}}
    >>> difference(asked, [small | {"opset": 20}, small])
    "the nearest graph of 'bert' has hidden_size 64, not 32"
    """
    own = _flat(request.describe())
    others = [
        _flat(each)
        for each in cached
        if isinstance(each, Mapping) and isinstance(each.get("config"), Mapping)
    ]
    others = [each for each in others if each.get("model_type") == own.get("model_type")]
    if not others:
        return None
    nearest = min((_differences(own, each) for each in others), key=len)
    if not nearest:
        return ""
    more = [f"{len(nearest) - _NAMED_LIMIT} more"] if len(nearest) > _NAMED_LIMIT else []
    named = ", ".join([*nearest[:_NAMED_LIMIT], *more])
    return f"the nearest graph of {request.model_type} has {named}"


def version_numbers(version: Any) -> tuple[int, ...]:
    """Return the numbers of a version, for comparing.

    >>> version_numbers("2.13.0+cpu"), version_numbers(None)
    ((2, 13, 0), ())
    """
    leading = re.match(r"\d+(?:\.\d+)*", version if isinstance(version, str) else "")
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request as one level of keys."""
    rest = {name: value for name, value in request.items() if name not in {"config", "choices"}}
    return dict(request["config"]) | dict(request.get("choices") or {}) | rest


def _differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {_shown(other, name)}, not {_shown(own, name)}"
        for name in sorted(own.keys() | other.keys())
        if own.get(name, _ABSENT) != other.get(name, _ABSENT)
    ]


def _shown(table: Mapping[str, Any], name: str) -> str:
    return shown(table[name]) if name in table else _ABSENT
