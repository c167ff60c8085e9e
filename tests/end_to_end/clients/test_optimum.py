"""``layout --for optimum`` in optimum-onnx: logits, labels and tokens of PEFT in torch."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lora_export.core.errors import UnsupportedError
from tests.helpers.client_cases import expected, job_of, make_case, require_same
from tools.model_families import FAMILIES

SMALL = (
    ("BERT", "text-classification"),
    ("Llama", "text-generation"),
    ("T5", "text2text-generation"),
    ("ViT", "image-classification"),
)
MORE = (
    ("GPT-2", "text-generation"),
    ("Gemma 3", "text-generation"),
    ("GPT-BigCode", "text-generation"),
    ("BART", "text2text-generation"),
    ("Whisper", "automatic-speech-recognition"),
    ("RoBERTa", "question-answering"),
    ("DistilBERT", "token-classification"),
    ("BERT", "fill-mask"),
    ("BERT", "sentence-similarity"),
    ("Llama", "text-classification"),
)
ALL = [(each.name, task) for each in FAMILIES for task in each.tasks]


def compared(cases, run_client, folder):
    """Run all cases in one process, and compare each with torch."""
    jobs = [job_of(case, case.layout("optimum", folder / str(at))) for at, case in enumerate(cases)]
    results = run_client("optimum", "optimum_client.py", jobs)
    for case, job, result in zip(cases, jobs, results, strict=True):
        wanted = expected(case, job)
        wanted.pop("embeddings", None)  # the states are checked with sentence-transformers
        require_same(result, wanted)
    return results


@pytest.fixture(scope="module")
def small(case_of):
    return [case_of(*each) for each in SMALL]


def test_one_of_each_kind_is_what_torch_computes(small, run_client, tmp_path):
    results = compared(small, run_client, tmp_path)
    logits = np.asarray(results[0]["logits"])
    assert results[0]["labels"] == [f"LABEL_{best}" for best in logits.argmax(1)]


@pytest.mark.slow
def test_further_kinds_are_what_torch_computes(case_of, run_client, tmp_path):
    compared([case_of(*each) for each in MORE], run_client, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"dtype": "float16"}, {"quantize": {"weights": "int8"}}, {"mode": "swappable"}
], ids=str)  # fmt: skip
def test_variants_load_and_generate(settings, case_of, run_client, tmp_path):
    kinds = SMALL[:2] if "mode" in settings else SMALL[:3]  # a pair cannot be swappable
    cases = [case_of(*each, **settings) for each in kinds]
    jobs = [
        job_of(case, case.layout("optimum", tmp_path / str(at))) for at, case in enumerate(cases)
    ]
    results = run_client("optimum", "optimum_client.py", jobs)
    for case, job, result in zip(cases, jobs, results, strict=True):
        wanted = expected(case, job)
        if "mode" in settings:
            require_same(result, wanted)
        elif "logits" in wanted:
            require_same(result, wanted, 0.05)
        else:
            assert "error" not in result, result
            assert result["input_ids"] == wanted["input_ids"]


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "task"), ALL, ids="-".join)
def test_each_family_is_what_torch_computes_or_is_refused(family, task, run_client, tmp_path):
    try:
        case = make_case(family, task, tmp_path)
        folder = case.layout("optimum", tmp_path / "optimum")
    except UnsupportedError as error:
        pytest.skip(f"refused: {error}")
    job = job_of(case, folder)
    wanted = expected(case, job)
    wanted.pop("embeddings", None)
    (result,) = run_client("optimum", "optimum_client.py", [job])
    require_same(result, wanted)


def test_the_table_of_model_types_is_that_of_the_installed_transformers(run_client):
    from importlib import resources

    file = resources.files("lora_export.layouts") / "data" / "model_types.json"
    (found,) = run_client("optimum", "optimum_client.py", [{"folder": "", "task": "tables"}])
    ours = json.loads(file.read_text())["optimum-onnx"]
    # which classes of slow tokenizers there are depends on sentencepiece
    assert set(found.pop("tokenizer_classes")) <= set(ours.pop("tokenizer_classes"))
    assert found == ours
