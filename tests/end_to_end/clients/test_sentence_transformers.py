"""``layout --for sentence-transformers``: the embeddings of its own torch backend's formula."""

from __future__ import annotations

import pytest

from tests.helpers.client_cases import expected, job_of, make_case, require_same

FAMILIES = ("BERT", *(pytest.param(each, marks=pytest.mark.slow) for each in ("MPNet", "XLM-R")))


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_those_of_torch(family, case_of, run_client, tmp_path):
    case = case_of(family, "sentence-similarity")
    job = job_of(case, case.layout("sentence-transformers", tmp_path / "s"))
    (result,) = run_client("optimum", "optimum_client.py", [{**job, "task": "sentences"}])
    wanted = expected(case, job)
    require_same(result, {"embeddings": wanted["embeddings"]})
    assert result["longest"] == 64


@pytest.mark.slow
def test_half_precision_is_close(run_client, tmp_path):
    case = make_case("BERT", "sentence-similarity", tmp_path, dtype="float16")
    job = job_of(case, case.layout("sentence-transformers", tmp_path / "s"))
    (result,) = run_client("optimum", "optimum_client.py", [{**job, "task": "sentences"}])
    require_same(result, {"embeddings": expected(case, job)["embeddings"]}, 0.01)
