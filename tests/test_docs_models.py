"""docs/models.md has the rows of the table of families, and says what was measured."""

from __future__ import annotations

from tools.model_families import FAMILIES
from tools.model_rows import PAGE, TOLERANCE, TOLERANCES, page, stored_rows, too_far
from tools.models import OPSET

ROWS = stored_rows()
REFUSED = {"BigBird", "LED", "LayoutLM", "Longformer", "Mamba", "RWKV", "XLNet"}
WITH_CACHE = {"text-generation", "text2text-generation", "automatic-speech-recognition"}


def test_page_has_a_row_for_each_family_and_task() -> None:
    wanted = [(family.name, task) for family in FAMILIES for task in family.tasks]
    assert [(row.family, row.task) for row in ROWS] == wanted
    assert PAGE.read_text() == page(ROWS)


def test_every_export_agrees_with_torch_and_every_other_says_why_not() -> None:
    assert {row.family for row in ROWS if row.refused} == REFUSED
    for row in ROWS:
        assert bool(row.refused) == (row.family in REFUSED), row
        assert row.refused or (row.relative_l2 or 1.0) < TOLERANCE, row
        assert not too_far(row), row
        assert row.cache == (row.task in WITH_CACHE and not row.refused), row


def test_every_row_is_of_the_default_opset() -> None:
    assert {row.opset for row in ROWS if not row.refused} == {OPSET}


def test_rows_in_other_dtypes_have_a_figure_or_a_reason() -> None:
    for row in ROWS:
        assert row.refused or set(row.halves) == set(TOLERANCES), row
        assert all(half.relative_l2 or half.refused for half in row.halves.values()), row
