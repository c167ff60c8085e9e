"""Hooks that mkdocs calls while it builds the site (``hooks`` in mkdocs.yml)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mkdocs.structure.files import File

from tools.docs_site.command_line import command_line
from tools.docs_site.drawing import graph_svg
from tools.docs_site.links import OUTSIDE, site_links, split_code
from tools.docs_site.reference import (
    decisions,
    exit_codes,
    python_api,
    recipe_keys,
    schemas,
    targets,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["on_config", "on_files", "on_page_markdown"]

_ROOT: Final = Path(__file__).parents[2]
_GENERATED: Final[dict[str, Callable[[], str]]] = {
    "command line": command_line,
    "decisions": decisions,
    "exit codes": exit_codes,
    "python api": python_api,
    "recipe": recipe_keys,
    "schemas": schemas,
    "targets": targets,
}
"""Placeholders, ``<!-- generated: NAME -->``, and what takes their place."""

_OF_FILES: Final = re.compile(r"<!-- not on the site -->.*?<!-- /not on the site -->\n*", re.DOTALL)
_COMMENT: Final = re.compile(r"<!--(?P<text>.*?)-->\n?", re.DOTALL)
_TAG: Final = re.compile(r"^(?P<fence>`{3,})(?P<language>[\w+-]+)[ \t][^\n]*", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put pages that the menu does not list at the end of the guides."""
    listed = {
        next(iter(page.values())) if isinstance(page, dict) else page
        for group in config.nav or []
        for pages in group.values()
        for page in pages
    }
    rest = {path.name for path in (_ROOT / "docs").glob("*.md")} - listed
    for group in config.nav or []:
        if "Guides" in group:
            group["Guides"] += sorted(rest)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of ``docs``."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / source)))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Return a page's text with placeholders filled in, links and blocks as mkdocs has them."""
    name = page.file.src_uri
    if "\n## " not in text and "generated:" not in text:
        page.meta.setdefault("hide", []).append("toc")  # no headings: the text has its room
    parts = [
        _block(part) if is_code else _COMMENT.sub(_filled, _OF_FILES.sub("", part))
        for is_code, part in split_code(site_links(text, name))
    ]
    return "".join(parts)


def _filled(comment: re.Match[str]) -> str:
    """Return what a comment stands for: nothing, unless it is a placeholder."""
    kind, _, name = comment["text"].strip().partition(": ")
    return _GENERATED[name]() if kind == "generated" else ""


def _block(block: str) -> str:
    """Return a fenced block without the words behind its language, which tests read."""
    if block.startswith("```mermaid"):
        return graph_svg(block)
    return _TAG.sub(r"\g<fence>\g<language>", block, count=1)
