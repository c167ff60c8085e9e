"""Odd values in ``adapter_config.json``: every setting is checked where the file is opened."""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pytest

from lora_export.adapters.combine import Combination, combine
from lora_export.adapters.formats.detect import read_adapter
from lora_export.adapters.formats.peft_write import write_peft as write_adapter
from lora_export.core.adapter_settings import check_settings
from lora_export.core.errors import AdapterError, InputError, UnsupportedError
from tests.helpers.odd_values import ODD, mutated, with_each
from tests.helpers.peft_files import WRAPPER, pair, write_peft

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: Final[dict[str, Any]] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "revision": None,
    "auto_mapping": None,
    "r": 2,
    "lora_alpha": 4,
    "rank_pattern": {},
    "alpha_pattern": {"q": 3},
    "use_rslora": False,
    "use_dora": False,
    "lora_bias": False,
    "fan_in_fan_out": False,
    "ensure_weight_tying": False,
    "init_lora_weights": True,
    "bias": "none",
    "target_modules": ["q_proj"],
    "exclude_modules": None,
    "target_parameters": None,
    "modules_to_save": ["head"],
    "layers_to_transform": None,
    "layers_pattern": None,
    "trainable_token_indices": None,
    "layer_replication": None,
    "megatron_config": None,
    "alora_invocation_tokens": None,
    "fine_tune_type": "lora",
    "lora_parameters": {"scale": 1.0, "rank": 2},
    "model": "m",
}
"""Every setting that some reader looks at, PEFT's and mlx's, as an ordinary file has it."""

TENSORS: Final = {
    **pair("layers.0.q_proj", 4, 6),
    f"{WRAPPER}head.weight": np.zeros((2, 6), np.float32),
}
WRITTEN: Final = ("modules_to_save", "bias", "fan_in_fan_out", "trainable_token_indices")
"""Settings that are looked at when an adapter is written."""

HEADER: Final = {"peft_type", "task_type", "base_model_name_or_path"}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "written").mkdir()
    return write_peft(tmp_path / "adapter", TENSORS, **SETTINGS)


def _use(
    folder: Path, settings: dict[str, Any], kind: str | None = None, *, write: bool = False
) -> str:
    """Read, combine and write an adapter with these settings; return what refuses it, if any."""
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    try:
        found = read_adapter(folder, name="x", source=str(folder), format=kind)
        combined = combine([found, found], Combination("cat"), name="both")
        for each in (found, combined) if write else ():
            write_adapter(each, folder.parent / "written")
    except (InputError, UnsupportedError) as error:  # exit 3 and 4
        return error.message
    return ""


def test_ordinary_settings_are_used(adapter: Path) -> None:
    assert not _use(adapter, SETTINGS, write=True)


def test_every_setting_with_every_odd_value_is_used_or_refused(adapter: Path) -> None:
    for what, settings in with_each(SETTINGS):
        message = _use(adapter, settings, write=what.startswith(WRITTEN))
        assert len(message) < 1_500, what
        assert "\n" not in message, what


def test_mutated_settings_are_used_or_refused_in_every_format(adapter: Path) -> None:
    numbers = random.Random(19)
    for _ in range(100):
        for kind in (None, "mlx", "torchtune", "kohya", "loralib"):
            assert len(_use(adapter, mutated(SETTINGS, numbers), kind)) < 1_500


REFUSED: Final[dict[str, tuple[str, Any]]] = {
    "a list as the task": ("task_type", ["CAUSAL_LM"]),
    "a table as the task": ("task_type", {"a": 1}),
    "rows beyond 64 bits": ("trainable_token_indices", [2**70]),
    "rows of a module beyond 64 bits": ("trainable_token_indices", {"embed": [2**70]}),
    "a number of targets": ("target_modules", 1.5),
    "a number of saved modules": ("modules_to_save", 5),
    "null among saved modules": ("modules_to_save", [None]),
    "a saved module as text": ("modules_to_save", "head"),
    "true as the rank": ("r", True),
    "a rank as text": ("r", "2"),
    "a negative rank": ("r", -1),
    "an enormous rank": ("r", 1e30),
    "alpha as text": ("lora_alpha", "16"),
    "alpha that is not a number": ("lora_alpha", float("nan")),
    "an alpha pattern that is not a number": ("alpha_pattern", {"q_proj": float("nan")}),
    "a rank pattern as text": ("rank_pattern", {"q_proj": "2"}),
    "a rank pattern as a list": ("rank_pattern", ["q_proj"]),
    "a flag as text": ("use_rslora", "yes"),
    "a number as the base": ("base_model_name_or_path", 7),
    "layers as text": ("layers_to_transform", "0"),
    "a number as a pattern of layers": ("layers_pattern", [0]),
    "a pattern in patterns of ranks": ("rank_pattern", {"(": 2}),
    "no pattern": ("target_modules", "("),
    "a repetition beyond the engine": ("target_modules", f"a{{{2**70}}}"),
    "a pattern nested beyond the engine": ("target_modules", "(" * 900 + ")" * 900),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_of_another_type_is_named(adapter: Path, case: str) -> None:
    setting, value = REFUSED[case]
    message = _use(adapter, {**SETTINGS, setting: value})
    assert setting in message, message


@pytest.mark.parametrize("setting", sorted(set(SETTINGS) - HEADER))
def test_a_value_that_says_nothing_is_no_damage(setting: str) -> None:
    check_settings({**SETTINGS, setting: None}, "x")


PATTERNS: Final[dict[str, dict[str, Any]]] = {
    "a pattern that backtracks": {"target_modules": "(a+)+$"},
    "three repetitions": {"target_modules": ".*a.*a.*a$"},
    "ten thousand patterns": {"rank_pattern": {f".*{n}.*q.*": 2 for n in range(9_000)}},
    "a hundred thousand names": {"target_modules": [f"m{n}" for n in range(100_000)]},
    "patterns of layers": {"layers_pattern": ["a.*"] * 900, "layers_to_transform": [1]},
}


@pytest.mark.parametrize("case", PATTERNS)
def test_expressions_end_in_seconds(tmp_path: Path, case: str) -> None:
    tensors: dict[str, Any] = {}
    for n in range(200):
        tensors |= pair(f"layers.{n}.{'a' * 200}.q_proj", 2, 2)
    folder = write_peft(tmp_path / "adapter", tensors)
    start = time.process_time()
    _use(folder, {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
                  **PATTERNS[case]})  # fmt: skip
    assert time.process_time() - start < 5


def test_a_tensor_with_an_endless_name_is_refused(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "adapter", pair("a." * 1_000 + "q_proj", 2, 2))
    with pytest.raises(AdapterError, match="characters"):
        read_adapter(folder, name="x", source=str(folder))


def test_odd_values_cover_what_json_has() -> None:
    kinds = {type(value) for value in ODD.values()}
    assert kinds == {type(None), bool, int, float, str, list, dict}
