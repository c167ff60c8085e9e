"""A data set for some of an export's adapters is refused before a model is run, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_export.core.errors import InputError, UsageError
from lora_export.verification.datasets.fitting import require_fitting
from tests.cli.running import call
from tests.helpers.builds import build

DATA = Path("my data.jsonl")


def loader(*refusing: str):
    def load(name: str) -> None:
        if name in refusing:
            msg = "line 3 has the unknown label 2"
            raise InputError(msg, hint="Known: a, b.")

    return load


def test_the_adapter_that_it_does_not_fit_is_named_and_those_that_it_fits() -> None:
    with pytest.raises(InputError) as caught:
        require_fitting(DATA, ["one", "two", "three"], loader("two"))
    assert "does not fit the adapter 'two': line 3 has the unknown label 2" in caught.value.message
    assert caught.value.hint is not None
    assert "Known: a, b." in caught.value.hint
    assert "--dataset 'my data.jsonl' --only one --only three" in caught.value.hint


def test_a_file_that_fits_no_adapter_is_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"^line 3 has") as caught:
        require_fitting(DATA, ["one", "two"], loader("one", "two"))
    assert caught.value.hint == "Known: a, b."


def test_a_file_that_fits_all_passes_and_the_class_of_the_error_stays() -> None:
    require_fitting(DATA, ["one", "two"], loader())
    require_fitting(DATA, [], loader())

    def load(name: str) -> None:
        if name == "two":
            msg = "the labels have no names"
            raise UsageError(msg)

    with pytest.raises(UsageError, match="'two': the labels have no names"):
        require_fitting(DATA, ["one", "two"], load)


@pytest.mark.parametrize("mode", ["merged", "swappable"])
def test_verify_names_the_adapter_before_it_runs_a_model(
    tiny, tmp_path, capsys, monkeypatch, mode
) -> None:
    from lora_export.verification import export

    base = tiny.base("bert", "feature-extraction", tokenizer=True)
    adapters = {
        "three": tiny.adapter(base, seed=1),
        "two": tiny.adapter(base, seed=2, labels_count=2),
    }
    build(base, adapters, tmp_path / "out", mode=mode, task="text-classification")
    data = tmp_path / "dev.jsonl"
    data.write_text("".join(json.dumps({"text": "w3 w4", "label": n}) + "\n" for n in range(3)))

    def prepare(*given: object, **settings: object) -> object:
        pytest.fail("a model is run")

    monkeypatch.setattr(export, "prepare", prepare)
    done = call(capsys, "verify", tmp_path / "out", "--base", base, "--dataset", data)
    assert done.code == 3
    assert "does not fit the adapter 'two'" in done.message
    assert "has the unknown label 2" in done.message
    assert "--only three" in done.message
