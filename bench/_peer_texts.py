"""Held-out texts of the two trained recipes."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any, Final

import numpy as np

RECIPES: Final = Path(__file__).resolve().parent.parent / "recipes"
HELD_OUT_EVERY: Final = 12  # as in recipes/gpt2-python/train.py
_CHARACTERS: Final = 8000


def labelled_sentences() -> tuple[list[str], Any]:
    """Return the sentences of minilm-intents that it was not trained on, and their classes."""
    import yaml

    recipe = RECIPES / "minilm-intents"
    names = yaml.safe_load((recipe / "recipe.yaml").read_text("utf-8"))["labels"]
    lines = (recipe / "heldout.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], np.array([names.index(row["label"]) for row in rows])


def python_modules(folder: Path, count: int = 64) -> list[list[int]]:
    """Return rows of tokens from modules of the standard library that were held out.

    Args:
        folder: Where tokenizer.json and config.json of gpt2-python's base are.
        count: How many rows; each is as long as the model's context.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    length = json.loads((folder / "config.json").read_text("utf-8"))["n_positions"]
    rows: list[list[int]] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[::HELD_OUT_EVERY]:
        ids = tokenizer(path.read_text("utf-8")[:_CHARACTERS])["input_ids"]
        rows += [ids[at : at + length] for at in range(0, len(ids) - length, length)]
    return rows[:count]
