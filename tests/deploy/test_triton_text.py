"""How long a text is that the tokenizer of a repository makes tokens of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_export.deploy.triton import write_repository
from tests.helpers.triton_config import read_config

pytestmark = pytest.mark.xdist_group("deploy")

POSITIONS = 160
"""Of the tiny BERT."""


@pytest.mark.parametrize(
    ("truncation", "model_max", "sentence", "wanted"),
    [
        (None, None, None, POSITIONS),
        (9, None, None, 9),
        (None, 11, None, 11),
        (9, 11, None, 9),
        (9, 11, 20, 20),  # as sentence-transformers cuts it
        (9, 11, 10**6, POSITIONS),
        (9, None, "20", 9),
    ],
)
def test_a_text_is_as_long_as_model_and_tokenizer_say(  # noqa: PLR0917
    served, tmp_path, truncation, model_max, sentence, wanted
):
    export = Path(shutil.copytree(served["swappable"], tmp_path / "out"))
    cut = {"direction": "Right", "strategy": "LongestFirst", "stride": 0, "max_length": truncation}
    merge(export / "hf/tokenizer.json", truncation=cut if truncation else None)
    merge(export / "hf/tokenizer_config.json", model_max_length=model_max)
    if sentence is not None:
        merge(export / "hf/sentence_bert_config.json", max_seq_length=sentence)
    write_repository(export, tmp_path / "models", name="m", text=True)
    config = read_config(tmp_path / "models/m-tokenizer")
    assert config.parameters["max_length"].string_value == str(wanted)


def merge(file: Path, **keys: object) -> None:
    """Set keys of a JSON file, which may be new."""
    table = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**table, **keys}))
