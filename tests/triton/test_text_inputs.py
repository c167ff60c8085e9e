"""The tokenizers of a repository: how long a text may be, and which adapter's it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lora_export.commands.add import add
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.triton.check_repository import check_repository
from lora_export.triton.repository import write_repository
from tests.cli.running import call
from tests.helpers.triton_config import read_config

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


def test_a_length_of_the_wrong_type_is_named(served, tmp_path):
    export = Path(shutil.copytree(served["swappable"], tmp_path / "out"))
    merge(export / "hf/sentence_bert_config.json", max_seq_length="20")
    with pytest.raises(ExportDirectoryError, match="has the max_seq_length '20'"):
        write_repository(export, tmp_path / "models", name="m", text=True)
    assert not (tmp_path / "models").exists()


def merge(file: Path, **keys: object) -> None:
    """Set keys of a JSON file, which may be new."""
    table = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**table, **keys}))


@pytest.fixture(scope="module")
def chatty(served, tiny, tmp_path_factory) -> dict[str, Path]:
    """The exports with a further adapter, ``own``, that brings a tokenizer."""
    root = tmp_path_factory.mktemp("chatty")
    base = tiny.base("bert", "text-classification", tokenizer=True)
    adapter = Path(shutil.copytree(tiny.adapter(base, seed=21), root / "adapter"))
    table = json.loads((base / "tokenizer.json").read_text())
    vocabulary = table["model"]["vocab"]
    table["model"]["vocab"] = {**vocabulary, "w3": vocabulary["w4"], "w4": vocabulary["w3"]}
    (adapter / "tokenizer.json").write_text(json.dumps(table))
    found = {}
    for mode, export in served.items():
        found[mode] = Path(shutil.copytree(export, root / mode))
        add(found[mode], [AdapterSpec(name="own", source=str(adapter))], base=base)
    return found


def word(repository: Path, model: str, file: str = "tokenizer.json") -> int:
    table = json.loads((repository / model / "1" / file).read_text())
    return int(table["model"]["vocab"]["w3"])


def test_a_model_for_each_adapter_reads_the_texts_of_its_adapter(chatty, tmp_path, capsys):
    repository = tmp_path / "models"
    write_repository(chatty["merged"], repository, name="m", text=True, adapters=["a", "own"])
    assert (word(repository, "m-tokenizer"), word(repository, "m-own-tokenizer")) == (3, 4)
    steps = read_config(repository / "m-own-text").ensemble_scheduling.step
    assert [each.model_name for each in steps] == ["m-own-tokenizer", "m-own"]
    steps = read_config(repository / "m-a-text").ensemble_scheduling.step
    assert [each.model_name for each in steps] == ["m-tokenizer", "m-a"]
    assert not any(check_repository(repository).values())
    assert call(capsys, "triton", "remove", "own", "--repository", repository).code == 0
    assert not list(repository.glob("m-own*"))
    assert call(capsys, "triton", "add", chatty["merged"], "own", "--repository",
                repository).code == 0  # fmt: skip
    assert word(repository, "m-own-tokenizer") == 4
    assert not any(check_repository(repository).values())


@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_one_model_of_all_adapters_tokenizes_by_the_adapter_s_name(chatty, tmp_path, mode):
    repository = tmp_path / "models"
    write_repository(chatty[mode], repository, name="m", text=True, backend="python")
    files = (word(repository, "m-tokenizer"),
             word(repository, "m-tokenizer", "tokenizer-own.json"))  # fmt: skip
    assert files == (3, 4)
    inputs = [each.name for each in read_config(repository / "m-text").input]
    assert sorted(inputs) == ["adapter", "text"]
    assert check_repository(repository) == {"m": [], "m-text": [], "m-tokenizer": []}
    (repository / "m-tokenizer/1/tokenizer-own.json").unlink()
    assert check_repository(repository)["m-tokenizer"] == ["1/tokenizer-own.json is missing"]


def test_an_adapter_is_not_added_to_a_tokenizer_that_is_not_its_own(
    served, chatty, tmp_path, capsys
):
    repository = tmp_path / "models"
    write_repository(served["swappable"], repository, name="m", text=True)
    done = call(capsys, "triton", "add", chatty["swappable"], "own", "--repository", repository)
    assert done.code == 4
    assert "tokenizer of adapter 'own'" in done.message
    batched = tmp_path / "batched"
    with pytest.raises(UnsupportedError, match="'own' has a tokenizer"):
        write_repository(chatty["batched"], batched, name="m", text=True, backend="onnxruntime")
