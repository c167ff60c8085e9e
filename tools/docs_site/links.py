"""Links of the repository's pages, as links of the site."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["OUTSIDE", "heading_anchor", "repository_path", "site_links", "site_path", "split_code"]

OUTSIDE: Final[Mapping[str, str]] = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "report-a-vulnerability.md",
    "bench/README.md": "benchmark-scripts.md",
    "docker/README.md": "docker.md",
    "recipes/fleet/README.md": "recipes/fleet.md",
    "recipes/gpt2-python/README.md": "recipes/gpt2-python.md",
    "recipes/jetson-gpt2/README.md": "recipes/jetson-gpt2.md",
    "recipes/jetson-minilm/README.md": "recipes/jetson-minilm.md",
    "recipes/jetson-roberta-refit/README.md": "recipes/jetson-roberta-refit.md",
    "recipes/minilm-intents/README.md": "recipes/minilm-intents.md",
    "tests/cli/golden/messages.md": "messages.md",
}
"""Pages of the repository outside of ``docs``, and where the site has them."""

_FOLDERS: Final[Mapping[str, str]] = {
    "bench": "benchmark-scripts.md",
    "docs/adr": "adr/README.md",
    "docs/schemas": "reference/schemas.md",
}
"""Folders that pages link to, and the page of the site that lists what is in them."""

_FENCE: Final = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE
)
_LINK: Final = re.compile(
    r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^)\s]+)\)"
)


def site_path(path: str) -> str | None:
    """Return where the site has a file of the repository; None for one that it does not have.

    >>> site_path("docs/adapters.md"), site_path("README.md"), site_path("bench/modes.py")
    ('adapters.md', 'index.md', None)
    """
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path in _FOLDERS:
        return _FOLDERS[path]
    inside = path.removeprefix("docs/")
    return inside if inside != path and "." in posixpath.basename(path) else None


def repository_path(page: str) -> str:
    """Return the file of the repository that a page of the site is made from.

    >>> repository_path("index.md"), repository_path("adapters.md")
    ('README.md', 'docs/adapters.md')
    """
    return next((path for path, site in OUTSIDE.items() if site == page), f"docs/{page}")


def site_links(text: str, page: str) -> str:
    """Return a page's text with its links as the site has them; code blocks stay as they are.

    Args:
        text: Markdown with links relative to the file that it comes from.
        page: The page of the site, such as ``adr/0008-static-cache.md``.

    A link to a file that is not on the site keeps its text and loses its target.
    """
    return "".join(
        part if is_code else _LINK.sub(lambda found: _translated(found, page), part)
        for is_code, part in split_code(text)
    )


def heading_anchor(heading: str, separator: str = "-") -> str:
    """Return the anchor of a heading, as GitHub has it.

    >>> heading_anchor("What was run, and where")
    'what-was-run-and-where'
    """
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def split_code(text: str) -> Iterator[tuple[bool, str]]:
    """Yield a page's parts in their order: whether a part is a fenced block, and its text."""
    end = 0
    for block in _FENCE.finditer(text):
        yield False, text[end : block.start()]
        yield True, block[0]
        end = block.end()
    yield False, text[end:]


def _translated(link: re.Match[str], page: str) -> str:
    target = link["target"]
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    file, _, anchor = target.partition("#")
    source = posixpath.dirname(repository_path(page))
    found = site_path(posixpath.normpath(posixpath.join(source, file)))
    # The text of a link may hold an image, whose own target has to be translated too.
    text = _LINK.sub(lambda inner: _translated(inner, page), link["text"])
    if found is None:
        return text
    relative = posixpath.relpath(found, posixpath.dirname(page) or ".")
    return f"{link['image']}[{text}]({relative}{'#' if anchor else ''}{anchor})"
