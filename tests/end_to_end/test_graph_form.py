"""``--graph-form ort`` from a base and adapters to verified graphs in every mode."""

from __future__ import annotations

import numpy as np
import pytest

from lora_export import open_export
from lora_export.commands.generate import continue_texts
from lora_export.commands.recipe import make_triton
from lora_export.commands.triton import write_triton
from lora_export.core.errors import ExportDirectoryError, UnsupportedError
from lora_export.core.manifest import read_manifest
from lora_export.engines.engine_options import EngineOptions
from lora_export.engines.jobs import jobs_of
from lora_export.runtime.text_generation import Sampling
from tests.helpers.builds import build
from tests.helpers.chat_models import greedy, loaded_tokenizer, save_chat_adapter, save_chat_base

TEXTS = ("the quick brown fox", "a small model", "dog")
COUNT = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    base = save_chat_base("Llama", root / "base", num_hidden_layers=2)
    return base, {
        "a": save_chat_adapter(base, root / "a", seed=1, r=4),
        "b": save_chat_adapter(base, root / "b", seed=2, r=3, use_rslora=True),
    }


def built(made, output, **settings):
    return build(made[0], made[1], output, task="text-generation", graph_form="ort",
                 verify={"enabled": True}, **settings)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["merged", "swappable", "batched"])
def test_every_mode_is_verified_and_generates_what_peft_generates(made, tmp_path, mode):
    outcome = built(made, tmp_path / "out", mode=mode)
    assert outcome.exit_code() == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest.format_version == 2
    assert {each.form for each in manifest.graphs.values()} == {"ort"}
    rows = [loaded_tokenizer(made[0])(text)["input_ids"] for text in TEXTS]
    for name in ("a", "b", None):
        found = continue_texts(
            tmp_path / "out", TEXTS, adapter=name, max_new_tokens=COUNT, sampling=Sampling()
        )
        adapter = made[1][name] if name is not None else None
        tokens = [[each for each in row.tokens if each != 2] for row in found]  # the stop token
        assert tokens == greedy(made[0], adapter, rows, COUNT)
    written_in_place(tmp_path / "out", rows[0])


def written_in_place(export, ids):
    """Run a prompt and a step with arrays that have room; each adapter has arrays of its own."""
    with open_export(export) as session:
        sizes = {e.name: e.axes[1::2] for e in session.inputs if e.name.startswith("past_")}
        for name in ("a", "b", None):
            room = {past: np.zeros((1, heads, 32, width), np.float32)
                    for past, (heads, width) in sizes.items()}  # fmt: skip
            grown = {past: each[:, :, :0] for past, each in room.items()}
            for start, end in ((0, len(ids)), (len(ids), len(ids) + 1)):
                text = {
                    "input_ids": np.array([[*ids, 7][start:end]]),
                    "attention_mask": np.ones((1, end), np.int64),
                    "position_ids": np.arange(start, end)[None],
                }
                feeds = {each.name: text[each.name] for each in session.inputs
                         if each.name in text}  # fmt: skip
                found = session.run({**feeds, **room}, adapter=name)
                expected = session.run({**feeds, **grown}, adapter=name)
                np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-5)
                for past, each in room.items():
                    assert found[past.replace("past_key_values", "present")] is each
                grown = {past: expected[past.replace("past_key_values", "present")]
                         for past in room}  # fmt: skip


@pytest.mark.slow
def test_four_bits(made, tmp_path):
    outcome = built(made, tmp_path / "out", quantize={"weights": "int4", "block_size": 16})
    assert outcome.exit_code() == 0
    graphs = read_manifest(tmp_path / "out").graphs
    assert {each.verification for each in graphs.values()} == {"pass"}


@pytest.mark.slow
def test_an_export_of_the_form_stays_one(made, tmp_path):
    out = tmp_path / "out"
    first = {"a": made[1]["a"]}
    build(made[0], first, out, task="text-generation", graph_form="ort")
    build(made[0], {"b": made[1]["b"]}, out, task="text-generation", graph_form="ort")
    assert set(read_manifest(out).adapters) == {"a", "b"}
    with pytest.raises(ExportDirectoryError, match="another graph form: ort, not portable"):
        build(made[0], {"c": made[1]["b"]}, out, task="text-generation")
    with pytest.raises(UnsupportedError, match="operators of ONNX Runtime") as caught:
        jobs_of(out, read_manifest(out), "jetson-orin", ["a"], EngineOptions())
    assert caught.value.exit_code == 4
    with pytest.raises(UnsupportedError, match="is not served"):
        write_triton(out, tmp_path / "models", make_triton({}))
