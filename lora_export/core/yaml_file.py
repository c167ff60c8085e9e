"""The YAML loader of recipes: safe, and a duplicate key is an error."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["UniqueKeyLoader"]


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that stands twice instead of taking the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """Return the mapping; raise where a key stands twice."""
        table = super().construct_mapping(node, deep=deep)
        if len(table) != len(node.value):
            seen = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next((key for key in seen if seen.count(key) > 1), None)
            msg = f"the key {twice!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, msg, node.start_mark)
        return table
