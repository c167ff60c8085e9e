"""The documentation site: links, placeholders, menus; `make docs` builds it without a warning."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click import Context

from lora_export.cli import cli
from lora_export.commands.recipe import Recipe
from lora_export.core import errors
from lora_export.core.targets import TARGETS
from tools.docs_site import reference
from tools.docs_site.command_line import command_line
from tools.docs_site.drawing import graph_svg
from tools.docs_site.links import OUTSIDE, heading_anchor, site_links, site_path
from tools.readme_comparison import README, replaced

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "[a](docs/adapters.md#formats)", "[a](adapters.md#formats)"),
        ("index.md", "[a](bench/modes.py)", "a"),
        ("index.md", "[![p](docs/assets/p.png)](docs/faq.md)", "[![p](assets/p.png)](faq.md)"),
        ("adapters.md", "[the README](../README.md#limits)", "[the README](index.md#limits)"),
        ("adr/0001-x.md", "[`x`](../adapters.md)", "[`x`](../adapters.md)"),
        ("docker.md", "[b](../docs/bundles.md)", "[b](bundles.md)"),
        ("recipes/jetson-gpt2.md", "[g](../gpt2-python/README.md)", "[g](gpt2-python.md)"),
        ("reports.md", "[s](schemas/parity.schema.json)", "[s](schemas/parity.schema.json)"),
        ("index.md", "[w](https://example.org/a) [h](#x)", "[w](https://example.org/a) [h](#x)"),
        ("index.md", "```\n[a](bench/modes.py)\n```", "```\n[a](bench/modes.py)\n```"),
    ],
)
def test_a_link_of_the_repository_is_one_of_the_site(page: str, link: str, expected: str) -> None:
    assert site_links(link, page) == expected


def test_pages_outside_of_docs_exist_and_are_on_the_site_once() -> None:
    assert all((ROOT / path).is_file() for path in OUTSIDE)
    assert len(set(OUTSIDE.values())) == len(OUTSIDE)
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/*/README.md")} <= set(
        OUTSIDE
    )


def test_every_page_of_the_menu_exists() -> None:
    menu = [
        next(iter(page.values())) if isinstance(page, dict) else page
        for group in yaml.load(  # the configuration names a function, which no safe loader knows
            re.sub(r"!!python/name:\S+", "''", (ROOT / "mkdocs.yml").read_text("utf-8")),
            Loader=yaml.SafeLoader,
        )["nav"]
        for pages in group.values()
        for page in pages
    ]
    assert len(set(menu)) == len(menu)
    outside = set(OUTSIDE.values())
    assert [
        page for page in menu if page not in outside and not (ROOT / "docs" / page).is_file()
    ] == []


def test_the_command_line_has_every_command_and_flag() -> None:
    page = command_line()
    context = Context(cli)
    for name in cli.list_commands(context):
        assert f"\n## {name}\n" in page
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            for flag in parameter.opts:
                if flag.startswith("--"):
                    assert flag in page, (name, flag)
    assert "\n### triton check\n" in page


def test_the_recipe_has_every_key_with_a_description() -> None:
    page = reference.recipe_keys()
    keys = set(Recipe.model_fields) - {"folder"}
    assert keys <= set(re.findall(r"^- \*\*`(\w+)`\*\*", page, re.MULTILINE))
    assert re.findall(r"^- .*\): *$", page, re.MULTILINE) == []
    assert "- **`max_ratio`** (number; default `1.05`): " in page
    assert "## `verify`" in page
    assert "`merged`, `swappable`, `batched`" in page


def test_errors_targets_schemas_and_decisions_are_complete() -> None:
    codes = reference.exit_codes()
    assert all(f"`{name}`" in codes for name in errors.__all__)
    assert "| 5 | `ParityError` |" in codes
    assert all(f"| `{name}` |" in reference.targets() for name in TARGETS)
    schemas = reference.schemas()
    assert all(
        f"## {path.name.partition('.')[0]}\n" in schemas
        for path in (ROOT / "docs/schemas").glob("*.json")
    )
    decisions = reference.decisions()
    assert all(path.name in decisions for path in (ROOT / "docs/adr").glob("[0-9]*.md"))


def test_the_python_api_names_functions_that_exist() -> None:
    page = reference.python_api()
    assert "::: lora_export.commands.build.merge_and_build" in page
    assert "`ParityError`" in page


def test_the_drawing_has_a_box_for_each_name_and_an_arrow_for_each_import() -> None:
    svg = graph_svg("```mermaid\ngraph TD\n    a --> b & c\n    b --> c\n```")
    assert svg.count("<rect") == 3
    assert svg.count('<path d="M') == 3 + 1  # the head of the arrows
    heights = dict(re.findall(r'<text x="[\d.]+" y="(\d+)">(\w)<', svg))
    by_name = {name: int(height) for height, name in heights.items()}
    assert by_name["a"] < by_name["b"] < by_name["c"]


def test_paths_and_anchors() -> None:
    assert site_path("lora_export/cli/__init__.py") is None
    assert site_path("docs/adr") == "adr/README.md"
    assert heading_anchor("`inputs/`") == "inputs"
    assert heading_anchor("Who reads A & B") == "who-reads-a--b"


def test_the_table_of_other_tools_is_that_of_the_results() -> None:
    page = README.read_text("utf-8")
    assert replaced(page) == page
    assert "| **lora-export** |" in page
