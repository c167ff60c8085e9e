"""A data set, read from lines of JSON."""

from __future__ import annotations

import pytest

from lora_export.verification.datasets.dataset import load_dataset
from lora_export.weights.companion_files import companion_files
from tests.helpers.models import POSITIONS, save_tiny_tokenizer
from tests.verification.datasets.examples import INPUTS, LABELS, signature


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return save_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def load(tokenizer, tmp_path):
    def run(
        text: str | bytes, labels=LABELS, inputs=INPUTS, folder=tokenizer, padding=None, **more
    ):
        path = tmp_path / "data.jsonl"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        settings = {"task": "text-classification", "metric": None, **more}
        config = {"max_position_embeddings": POSITIONS}
        if padding is not None:
            config["pad_token_id"] = padding
        return load_dataset(
            path, companions=companion_files(folder), labels=labels, signature=signature(*inputs),
            config=config, **settings,
        )  # fmt: skip

    return run
