"""Tied weights that a graph holds apart."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export.adapters.ties import TieGroup
from lora_export.exports.untied_export import ties_in_graph
from tests.helpers.foreign import tensors_of

EMBEDDING, HEAD = "model.embed_tokens.weight", "m.lm_head.weight"
LLAMA = {"model_type": "llama", "tie_word_embeddings": True}
WORDS = np.arange(12, dtype=np.float32).reshape(4, 3)
SOURCES = tensors_of({EMBEDDING: WORDS, HEAD: WORDS.copy(), "other.weight": WORDS + 1})


def test_copy_of_the_input_embedding_is_tied_to_it() -> None:
    names = (EMBEDDING, HEAD)
    assert ties_in_graph(SOURCES, LLAMA) == (TieGroup(names, names, EMBEDDING),)


@pytest.mark.parametrize(
    ("sources", "config"),
    [
        (SOURCES, {**LLAMA, "tie_word_embeddings": False}),
        (SOURCES, {"model_type": "unknown"}),
        ({**SOURCES, **tensors_of({HEAD: WORDS + 1})}, LLAMA),
        ({EMBEDDING: SOURCES[EMBEDDING]}, LLAMA),
        ({HEAD: SOURCES[HEAD]}, LLAMA),
    ],
)
def test_nothing_is_tied(sources, config) -> None:
    assert ties_in_graph(sources, config) == ()
