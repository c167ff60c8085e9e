"""The table of transformers' expert modules, compared with transformers itself."""

from __future__ import annotations

import re
from pathlib import Path

import transformers
from transformers import conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from lora_export.adapters.canonical import INPUT_FIRST_EXPERTS
from lora_export.adapters.formats.peft_parameters import REGISTERED
from lora_export.adapters.unstacked_experts import STORED_EXPERTS

SOURCES = sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py"))


def classes() -> dict[str, str]:
    """Return the source of each class, its decorators before it."""
    found: dict[str, str] = {}
    for path in SOURCES:
        pieces = re.split(r"^((?:@.*\n)*)class (\w+)", path.read_text("utf-8"), flags=re.MULTILINE)
        for at in range(1, len(pieces), 3):
            found[pieces[at + 1]] = pieces[at] + pieces[at + 2]
    return found


def test_modules_whose_experts_are_input_first() -> None:
    marked = {name for name, text in classes().items() if re.match(r"@.*is_transposed=True", text)}
    assert marked == set(INPUT_FIRST_EXPERTS.values())


def test_parameters_are_registered_in_the_order_of_the_table() -> None:
    seen = 0
    for name, text in classes().items():
        made = dict.fromkeys(re.findall(r"self\.(\w+) = nn\.Parameter\(", text))
        known = [each for each in made if each in REGISTERED]
        seen += len(known) > 1
        assert known == sorted(known, key=REGISTERED.index), name
    assert seen > 50


def test_matrices_are_stacked_in_the_order_of_the_table() -> None:
    """Wherever transformers stacks modules of these names, it stacks them so and no other way."""
    table = {(stacked, parts) for stacked, rows in STORED_EXPERTS.items() for parts in rows}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    for rows in conversion_mapping._build_checkpoint_conversion_mapping().values():
        for row in rows:
            targets = row.target_patterns if isinstance(row, WeightConverter) else []
            if len(targets) != 1 or ".experts" not in "".join(row.source_patterns):
                continue
            parts = tuple(
                match[1]
                for pattern in row.source_patterns
                if (match := re.search(r"experts\.\*\.(\w+)\.weight\$?$", pattern))
            )
            found = (targets[0].rpartition(".")[2], parts)
            if found not in table:
                assert not any(set(parts) == set(known) for _, known in table), found
                continue
            seen.add(found)
            kinds = [type(each) for each in row.operations]
            assert kinds == [MergeModulelist, Concatenate][: len(kinds)], found
            assert len(kinds) == len(parts), found
            assert [each.dim for each in row.operations] == [0, 1][: len(kinds)], found
    assert seen == table
