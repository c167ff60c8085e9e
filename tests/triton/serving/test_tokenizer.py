"""The tokenizer step as Triton calls it, against a double of the backend."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.core.errors import UnsupportedError
from lora_export.triton.graph_io import Tensor
from lora_export.triton.repository_options import RepositoryOptions
from lora_export.triton.token_inputs import Text, text_of, tokenizer_model
from lora_export.weights.companion_files import companion_files
from tests.helpers.backend import Backend, Request, loaded
from tests.helpers.models import POSITIONS, save_tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def tokens(kind: str = "TYPE_INT64", length: int = -1) -> list[Tensor]:
    return [Tensor(name, kind, (-1, length)) for name in ("input_ids", "attention_mask")]


@pytest.fixture
def export(tmp_path) -> Path:
    """As much of an export as a tokenizer step is made of."""
    (tmp_path / "out/hf").mkdir(parents=True)
    save_tiny_tokenizer(tmp_path / "out/hf")
    config = {"model_type": "bert", "max_position_embeddings": POSITIONS, "pad_token_id": 0}
    (tmp_path / "out/hf/config.json").write_text(json.dumps(config))
    return tmp_path / "out"


def opened(
    export: Path, folder: Path, inputs: list[Tensor], adapters: dict[str, Text] | None = None
) -> Any:
    config, files = tokenizer_model(export, "t", inputs, RepositoryOptions(), {}, adapters=adapters)
    for each in files:
        path = folder / each.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each.source.read_bytes() if each.source else each.data)
    types = {2: "TYPE_INT32"} | {each.data_type: inputs[0].data_type for each in config.output}
    table = {
        "parameters": {k: {"string_value": v.string_value} for k, v in config.parameters.items()},
        "output": [{"name": e.name, "data_type": types[e.data_type]} for e in config.output],
    }
    return loaded(folder / "1", table, Backend())


def ask(model: Any, *texts: bytes) -> Any:
    (answer,) = model.execute([Request({"text": np.array([[each] for each in texts], object)})])
    return answer


def test_texts_are_padded_together_and_say_so(export, tmp_path):
    answer = ask(opened(export, tmp_path / "m", tokens()), b"w3 w4 w5", b"w9")
    assert answer["input_ids"].tolist() == [[3, 4, 5] + [0] * 5, [9] + [0] * 7]
    assert answer["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] + [0] * 7]
    assert answer["input_ids"].dtype == np.int64


def test_a_graph_of_one_length_and_of_32_bits_gets_what_it_reads(export, tmp_path):
    model = opened(export, tmp_path / "m", tokens("TYPE_INT32", 12))
    for text in (b"w3", b"w3 " * 12, b"w3 " * 40):
        answer = ask(model, text)
        assert answer["input_ids"].shape == (1, 12)
        assert answer["input_ids"].dtype == np.int32
        assert answer["attention_mask"].sum() == min(len(text.split()), 12)


def test_what_is_wrong_with_one_text_harms_no_other(export, tmp_path):
    model = opened(export, tmp_path / "m", tokens())
    column = [np.array([[each]], object) for each in (b"w3", b"\xff", b"", b"w4")]
    answers = model.execute([Request({"text": each}) for each in column])
    assert [each.error is None for each in answers] == [True, False, False, True]
    assert "utf-8" in answers[1].error.message
    assert "without a token" in answers[2].error.message
    assert answers[3]["input_ids"][0, 0] == 4


def test_a_text_is_not_made_into_what_a_graph_cannot_tell_from_padding(export):
    with pytest.raises(UnsupportedError, match="attention_mask"):
        tokenizer_model(export, "t", tokens()[:1], RepositoryOptions(), {})
    with pytest.raises(UnsupportedError, match="pixel_values"):
        tokenizer_model(export, "t", [Tensor("pixel_values", "TYPE_FP32", (-1, 3, 8, 8))],
                        RepositoryOptions(), {})  # fmt: skip


def test_a_model_without_an_end_of_positions_has_a_tokenizer(export):
    config = {"model_type": "bert", "max_position_embeddings": 1 << 21, "pad_token_id": 0}
    (export / "hf/config.json").write_text(json.dumps(config))
    table = json.loads((export / "hf/tokenizer.json").read_text())
    (export / "hf/tokenizer.json").write_text(json.dumps({**table, "truncation": None}))
    made, _ = tokenizer_model(export, "t", tokens(), RepositoryOptions(), {})
    assert int(made.parameters["max_length"].string_value) == 1 << 20


def own_tokenizer(export: Path, **keys: Any) -> Text:
    """Return the texts of an adapter whose ``w3`` and ``w4`` have changed places."""
    folder = export.parent / "own"
    folder.mkdir()
    table = json.loads((export / "hf/tokenizer.json").read_text())
    vocabulary = table["model"]["vocab"]
    table["model"]["vocab"] = {**vocabulary, "w3": vocabulary["w4"], "w4": vocabulary["w3"]}
    (folder / "tokenizer.json").write_text(json.dumps({**table, **keys}))
    files = {**companion_files(export / "hf"), **companion_files(folder)}
    text = text_of(files)
    assert text is not None
    return text


def test_each_text_is_tokenized_as_its_adapter_was_trained(export, tmp_path):
    cut = {"direction": "Right", "strategy": "LongestFirst", "stride": 0, "max_length": 2}
    adapters = {"own": own_tokenizer(export, truncation=cut)}
    model = opened(export, tmp_path / "m", tokens(), adapters=adapters)
    words = np.array([[b"w3 w4 w5"]] * 3, object)
    names = np.array([[b"own"], [b""], [b"another"]], object)
    (answer,) = model.execute([Request({"text": words, "adapter": names})])
    assert answer["input_ids"][:, :3].tolist() == [[4, 3, 0], [3, 4, 5], [3, 4, 5]]
    assert answer["attention_mask"].sum(axis=1).tolist() == [2, 3, 3]
    (wrong,) = model.execute([Request({"text": words, "adapter": names[:2]})])
    assert "2 name(s)" in wrong.error.message


def test_a_graph_of_one_length_pads_every_adapter_to_it(export, tmp_path):
    adapters = {"own": own_tokenizer(export)}
    model = opened(export, tmp_path / "m", tokens(length=12), adapters=adapters)
    (answer,) = model.execute([Request({
        "text": np.array([[b"w3 " * 40], [b"w9"]], object),
        "adapter": np.array([[b"own"], [b""]], object),
    })])  # fmt: skip
    assert answer["input_ids"].shape == (2, 12)


def test_texts_are_padded_with_the_token_that_the_graph_computes_with(export, tmp_path):
    config = json.loads((export / "hf/config.json").read_text())
    (export / "hf/config.json").write_text(json.dumps({**config, "pad_token_id": 7}))
    answer = ask(opened(export, tmp_path / "m", tokens()), b"w9")
    assert answer["input_ids"].tolist() == [[9] + [7] * 7]
