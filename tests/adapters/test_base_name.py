"""Two ids of the hub that differ are worth a note; everything else would be a false alarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_export.adapters.base_name import note_on_base
from lora_export.adapters.canonical import Adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def note(named: object, given: str | None) -> str | None:
    adapter = Adapter("a", "the/adapter", Path(), "peft", (), (), None, named, "", {})  # type: ignore[arg-type]
    return note_on_base(adapter, given)


@pytest.mark.parametrize(
    ("named", "given"),
    [
        ("roberta-base", "google-bert/bert-base-uncased"),
        ("org/one", "org/two"),
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
        ("hf://org/one@main", "org/two"),
    ],
)
def test_two_ids_that_differ_are_noted(named: str, given: str) -> None:
    found = note(named, f"hf://{given}@{COMMIT}")
    assert found is not None
    for word in ("the/adapter", named, given):
        assert repr(word) in found


@pytest.mark.parametrize(
    ("named", "given"),
    [
        ("roberta-base", "FacebookAI/roberta-base"),
        ("meta-llama/Llama-2-7b-hf", "mirror/llama-2-7b"),
        ("unsloth/Meta-Llama-3.1-8B-unsloth-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "mistralai/Mistral-7B-v0.1"),
        ("/home/me/models/one", "org/two"),
        ("./one", "org/two"),
        ("a/b/c", "org/two"),
        ("models/one", "org/two"),
        ("my-local-base", "org/two"),
        (None, "org/two"),
        (7, "org/two"),
    ],
)
def test_the_same_model_and_paths_are_not(named: object, given: str) -> None:
    assert note(named, f"hf://{given}@{COMMIT}") is None


def test_a_local_base_has_no_name() -> None:
    assert note("org/one", None) is None
    assert note("org/one", "../models/two") is None


def test_what_exists_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert note("org/one", f"hf://org/two@{COMMIT}")
    (tmp_path / "org" / "one").mkdir(parents=True)
    assert note("org/one", f"hf://org/two@{COMMIT}") is None
