"""YAML from somebody's file: plain values of bounded size, and a duplicate key is an error.

YAML can say more than a recipe needs, and each of these has been used against readers:

    size        of the file, the number of values and their depth are limited
    aliases     a value that stands in ten places counts ten times; one inside itself is refused
    tags        text, numbers, booleans, lists and tables; a date (``2001-12-14``) is text
    text        without NUL and lone surrogates, which no file name can have
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

from lora_export.core.shown_value import shown
from lora_export.ondevice.file_opening import read_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["YamlError", "parse_yaml", "read_yaml"]

_LIMIT_BYTES: Final = 1 << 18
_VALUES_LIMIT: Final = 10_000
_DEPTH_LIMIT: Final = 32
_REASON_LIMIT: Final = 200
_TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"
_TAGS: Final = tuple(
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)


class YamlError(ValueError):
    """A text that is not YAML of the kind that is read; the message is one line."""


def read_yaml(path: Path) -> Any:
    """Return the value that a YAML file holds.

    Raises:
        OSError: It cannot be read, is not a regular file, or is too large.
        YamlError: It is not YAML of the kind that is read.
    """
    data = read_file(path, _LIMIT_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError(str(error)) from error
    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Return the value that a YAML text holds; None for an empty one.

    Raises:
        YamlError: It is not YAML of the kind that is read.
    """
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise YamlError(f"{_line(error.problem or error.context or 'unknown')}{where}") from error
    except yaml.YAMLError as error:
        raise YamlError(_line(str(error))) from error
    except RecursionError as error:
        msg = "it is nested too deeply"
        raise YamlError(msg) from error


def _line(text: str) -> str:
    """Return a reason on one line, which may quote the file, cut."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON_LIMIT else f"{line[:_REASON_LIMIT]}…"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, with the limits above."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next value and count what it holds; an alias counts as what it stands for."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self._depth == _DEPTH_LIMIT:
            raise _refusal("it is nested too deeply", mark)
        self._depth += 1
        before = self._values
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        assert node is not None  # noqa: S101  (None is for a stream that has ended)
        self._depth -= 1
        if alias and node not in self._sizes:
            raise _refusal("a value contains itself", mark)
        self._values += self._sizes[node] if alias else 1
        self._sizes.setdefault(node, self._values - before)
        if self._values > _VALUES_LIMIT:
            raise _refusal(f"it holds more than {_VALUES_LIMIT} values, aliases counted", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a table; raise where a key stands twice, or is not a plain value."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key is a list or a table", key.start_mark)
            if (key.tag, key.value) in seen:
                raise _refusal(f"the key {shown(key.value)} stands twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_plain(self, node: yaml.Node) -> Any:
        """Return the value of a node; raise where its text does not fit its tag."""
        try:
            value = yaml.SafeLoader.yaml_constructors[node.tag](self, node)
        except (ValueError, IndexError, KeyError) as error:
            kind = node.tag.rpartition(":")[2]
            article = "an" if kind.startswith("i") else "a"
            msg = f"{shown(node.value)} is not {article} {kind}"
            raise _refusal(msg, node.start_mark) from error
        if isinstance(value, str) and not _is_plain(value):
            msg = f"the text {shown(value)} holds a character that no file name can have"
            raise _refusal(msg, node.start_mark)
        return value


_Loader.yaml_constructors = {
    **dict.fromkeys(_TAGS, _Loader.construct_plain),
    None: yaml.SafeLoader.construct_undefined,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rows if tag != _TIMESTAMP]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _refusal(reason: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, mark)


def _is_plain(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= each <= "\udfff" for each in text)
