"""``layout --for transformers.js`` under node: logits, labels and tokens of PEFT in torch."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import pytest

from lora_export.core.errors import UnsupportedError
from tests.helpers.client_cases import expected, job_of, make_case, require_same
from tools.model_families import FAMILIES

SCRIPT = "transformers_js_client.mjs"
SENTENCE = ("BERT", "sentence-similarity")
SMALL = (
    ("BERT", "text-classification"),
    ("Llama", "text-generation"),
    ("T5", "text2text-generation"),
    ("ViT", "image-classification"),
    SENTENCE,
)
MORE = (
    ("GPT-2", "text-generation"),
    ("GPT-BigCode", "text-generation"),
    ("BART", "text2text-generation"),
    ("Whisper", "automatic-speech-recognition"),
    ("RoBERTa", "question-answering"),
    ("DistilBERT", "token-classification"),
    ("BERT", "fill-mask"),
)
ALL = [(each.name, task) for each in FAMILIES for task in each.tasks]


def job_in(case, folder):
    job = job_of(case, case.layout("transformers.js", folder))
    if case.task == "sentence-similarity":
        return {**job, "task": "sentences", "pooling": "mean", "normalize": True}
    return job


def wanted_of(case, job):
    wanted = expected(case, job)
    if "embeddings" in wanted:
        return {"embeddings": wanted["embeddings"]}
    return wanted


def without_start(case, result):
    """Return a result without the first token of decoding, which torch leaves out of speech."""
    if case.task == "automatic-speech-recognition" and "tokens" in result:
        return {**result, "tokens": [row[1:] for row in result["tokens"]]}
    return result


def compared(cases, run_node, folder):
    jobs = [job_in(case, folder / str(at)) for at, case in enumerate(cases)]
    results = run_node(SCRIPT, jobs)
    for case, job, result in zip(cases, jobs, results, strict=True):
        require_same(without_start(case, result), wanted_of(case, job))
    return results


def test_one_of_each_kind_is_what_torch_computes(case_of, run_node, tmp_path):
    results = compared([case_of(*each) for each in SMALL], run_node, tmp_path)
    logits = np.asarray(results[0]["logits"])
    assert results[0]["labels"] == [f"LABEL_{best}" for best in logits.argmax(1)]


@pytest.mark.slow
def test_further_kinds_are_what_torch_computes(case_of, run_node, tmp_path):
    compared([case_of(*each) for each in MORE], run_node, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "tolerance"), [
    ({"dtype": "float16"}, 0.02),
    ({"quantize": {"weights": "int8"}}, 0.05),
    ({"quantize": {"weights": "int4"}}, 0.6),
    ({"quantize": {"weights": "int4"}, "dtype": "float16"}, 0.6),
], ids=str)  # fmt: skip
def test_variants_load_without_a_dtype_that_is_named(
    settings, tolerance, case_of, run_node, tmp_path
):
    cases = [case_of(*each, **settings) for each in SMALL]
    jobs = [job_in(case, tmp_path / str(at)) for at, case in enumerate(cases)]
    for case, job, result in zip(cases, jobs, run_node(SCRIPT, jobs), strict=True):
        wanted = wanted_of(case, job)
        if "tokens" not in wanted:
            require_same(result, wanted, tolerance)
            continue
        assert "error" not in result, result
        assert result["input_ids"] == wanted["input_ids"]


@pytest.mark.nightly
@pytest.mark.parametrize(("family", "task"), ALL, ids="-".join)
def test_each_family_is_what_torch_computes_or_is_refused(family, task, run_node, tmp_path):
    try:
        case = make_case(family, task, tmp_path)
        job = job_in(case, tmp_path / "js")
    except UnsupportedError as error:
        pytest.skip(f"refused: {error}")
    (result,) = run_node(SCRIPT, [job])
    require_same(without_start(case, result), wanted_of(case, job))


def test_the_table_of_model_types_is_that_of_the_installed_runtime(run_node):
    file = resources.files("lora_export.layouts") / "data" / "model_types.json"
    (found,) = run_node(SCRIPT, [{"folder": "", "task": "tables"}])
    ours = json.loads(file.read_text())["transformers.js"]
    assert found["version"] == ours["version"]
    for task, types in ours["model_types"].items():
        assert set(types) <= set(found["model_types"][task]), task
