"""``verify --dataset`` of every kind of task, against scores that torch and scikit-learn give."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from tests.cli.exports import peft_model, report
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.slow import nightly

pytestmark = pytest.mark.slow

WORDS = [f"w{i}" for i in range(3, 200)]


def words(chance, least=3, most=9):
    return " ".join(chance.choices(WORDS, k=chance.randint(least, most)))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verified(capsys, tiny, tmp_path, model, rows, *flags, **settings):
    """Build an export, verify it on a data set; return the row of the report, base and adapter."""
    kind, task = model
    base = tiny.base(kind, task, tokenizer=True, **settings)
    count = settings.get("labels_count", 3)
    adapter = tiny.adapter(base, task=task, labels_count=count)
    more = {"labels": [f"l{i}" for i in range(count)]} if "classification" in task else {}
    build(base, {"one": adapter}, tmp_path / "out", **more)
    data = write(tmp_path / "data.jsonl", rows)
    done = call(
        capsys, "verify", tmp_path / "out", "--base", base, "--dataset", data, *flags, "--json",
        "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    row = report(tmp_path / "out", "parity")["graphs"]["one"]
    assert row["verdict"] == "pass"
    found = row["dataset"]
    assert found["count"] == len(rows)
    assert found["graph"] == pytest.approx(found["reference"], rel=1e-4)
    assert found["verdict"] == "pass"
    return found, base, adapter


def ids(text):
    return [int(word[1:]) for word in text.split()]


def test_numbers(capsys, tiny, tmp_path):
    chance = random.Random(1)
    rows = [{"text": words(chance), "label": chance.gauss(0, 1)} for _ in range(24)]
    found, base, adapter = verified(
        capsys, tiny, tmp_path, ("bert", "text-classification"), rows, labels_count=1
    )
    import torch
    from scipy import stats

    model = peft_model(base, adapter, "text-classification", labels_count=1)
    with torch.inference_mode():
        said = [float(model(input_ids=torch.tensor([ids(r["text"])])).logits) for r in rows]
    expected = stats.pearsonr(said, [row["label"] for row in rows]).statistic
    assert found["metric"] == "pearson"
    assert found["reference"] == pytest.approx(expected, abs=1e-5)
    assert found["base"] != pytest.approx(found["reference"], abs=1e-3)


def test_tags(capsys, tiny, tmp_path):
    chance = random.Random(2)
    rows = []
    for _ in range(16):
        tokens = words(chance).split()
        rows.append({"tokens": tokens, "tags": [chance.randrange(3) for _ in tokens]})
    found, base, adapter = verified(
        capsys, tiny, tmp_path, ("bert", "token-classification"), rows, "--metric", "accuracy"
    )
    import torch

    model = peft_model(base, adapter, "token-classification", labels_count=3)
    right = total = 0
    for row in rows:
        with torch.inference_mode():
            inputs = torch.tensor([ids(" ".join(row["tokens"]))])
            said = model(input_ids=inputs).logits[0].argmax(-1).tolist()
        right += sum(a == b for a, b in zip(said, row["tags"], strict=True))
        total += len(said)
    assert found["reference"] == pytest.approx(right / total)


def test_spans(capsys, tiny, tmp_path):
    chance = random.Random(3)
    rows = []
    for _ in range(10):
        context = words(chance, 8, 14)
        rows.append({"question": words(chance), "context": context,
                     "answers": [" ".join(context.split()[2:4])]})  # fmt: skip
    found, _, _ = verified(capsys, tiny, tmp_path, ("bert", "question-answering"), rows)
    assert found["metric"] == "f1"
    assert 0 <= found["reference"] <= 1


def test_perplexity(capsys, tiny, tmp_path):
    chance = random.Random(4)
    rows = [{"text": words(chance, 4, 12)} for _ in range(12)]
    found, base, adapter = verified(capsys, tiny, tmp_path, ("gpt2", "text-generation"), rows)
    import torch

    model = peft_model(base, adapter, "text-generation")
    loss = tokens = 0.0
    for row in rows:
        given = torch.tensor([ids(row["text"])])
        with torch.inference_mode():
            count = given.shape[1] - 1
            loss += float(model(input_ids=given, labels=given).loss) * count
            tokens += count
    assert found["metric"] == "perplexity"
    assert found["reference"] == pytest.approx(math.exp(loss / tokens), rel=1e-5)


def test_what_is_written(capsys, tiny, tmp_path):
    chance = random.Random(5)
    rows = [{"prompt": words(chance), "target": [words(chance), words(chance)]} for _ in range(6)]
    found, base, adapter = verified(
        capsys, tiny, tmp_path, ("gpt2", "text-generation"), rows,
        "--metric", "bleu", "--max-new-tokens", "6",
    )  # fmt: skip
    import sacrebleu
    import torch

    model = peft_model(base, adapter, "text-generation")
    said = []
    for row in rows:
        given = torch.tensor([ids(row["prompt"])])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=given, attention_mask=torch.ones_like(given), do_sample=False,
                max_new_tokens=6, pad_token_id=0, eos_token_id=2,
            )[0, given.shape[1] :]  # fmt: skip
        said.append(" ".join(f"w{token}" for token in whole.tolist() if token > 2))
    columns = [[row["target"][i] for row in rows] for i in range(2)]
    expected = sacrebleu.corpus_bleu(said, columns).score
    assert found["reference"] == pytest.approx(expected, abs=1e-6)


def test_what_an_encoder_decoder_writes(capsys, tiny, tmp_path):
    chance = random.Random(6)
    rows = [{"prompt": words(chance), "target": words(chance)} for _ in range(5)]
    found, _, _ = verified(
        capsys, tiny, tmp_path, ("bart", "text2text-generation"), rows, "--max-new-tokens", "5"
    )
    assert found["metric"] == "rouge"


def scored(capsys, out, base, data, *flags):
    """Verify an export on a data set; return the rows of its adapters."""
    done = call(capsys, "verify", out, "--base", base, "--dataset", data, *flags, "--json",
                "--quiet")  # fmt: skip
    assert done.code == 0, done.err + done.out
    graphs = report(out, "parity")["graphs"]
    rows = {
        name: row for row in graphs.values() for name, row in (row.get("adapters") or {}).items()
    }
    rows |= {name: row for name, row in graphs.items() if "dataset" in row}
    assert rows
    assert {row["verdict"] for row in rows.values()} == {"pass"}
    return {name: row["dataset"] for name, row in rows.items()}


@pytest.mark.parametrize("mode", nightly(["swappable", "merged", "batched"], but=1))
def test_a_static_cache_scores_as_a_growing_one(capsys, tiny, tmp_path, mode):
    chance = random.Random(8)
    base = tiny.base("llama", "text-generation", tokenizer=True)
    adapter = tiny.adapter(base, task="text-generation")
    texts = write(tmp_path / "texts.jsonl", [{"text": words(chance, 4, 12)} for _ in range(11)])
    prompts = write(
        tmp_path / "prompts.jsonl",
        [{"prompt": words(chance), "target": words(chance)} for _ in range(9)],
    )
    found = {}
    for room in (None, 24):
        out = tmp_path / f"room-{room}"
        build(base, {"one": adapter}, out, task="text-generation", mode=mode,
              **({"opset": 24, "cache_length": room} if room else {}))  # fmt: skip
        rows = scored(capsys, out, base, texts)
        written = scored(capsys, out, base, prompts, "--metric", "rouge", "--max-new-tokens", 6)
        found[room] = (rows["one"], written["one"])
    for grown, static in zip(*found.values(), strict=True):
        assert static["graph"] == pytest.approx(grown["graph"], rel=1e-5)
        assert static["reference"] == pytest.approx(grown["reference"], rel=1e-5)
        assert (static["count"], static["disagreements"]) == (grown["count"], 0)


def test_texts_past_a_static_cache_are_cut_and_counted(capsys, tiny, tmp_path):
    base = tiny.base("llama", "text-generation", tokenizer=True)
    build(base, {"one": tiny.adapter(base, task="text-generation")}, tmp_path / "out",
          task="text-generation", opset=24, cache_length=24)  # fmt: skip
    data = write(tmp_path / "data.jsonl", [{"text": words(random.Random(9), 40, 60)}] * 2)
    assert scored(capsys, tmp_path / "out", base, data)["one"]["cut"] == 2


@pytest.mark.parametrize("mode", nightly(["batched", "swappable"], but=1))
def test_adapters_of_one_graph_are_scored_each_with_its_own_names(capsys, tiny, tmp_path, mode):
    base = tiny.base("bert", tokenizer=True)
    adapters = {
        "one": {"source": str(tiny.adapter(base)), "labels": ["a", "b", "c"]},
        "two": {"source": str(tiny.adapter(base, seed=5, labels_count=2)), "labels": ["c", "a"]},
    }
    build(base, adapters, tmp_path / "out", mode=mode)
    chance = random.Random(10)
    data = write(
        tmp_path / "data.jsonl",
        [{"text": words(chance), "label": chance.choice("ac")} for _ in range(37)],
    )
    rows = scored(capsys, tmp_path / "out", base, data)
    assert {name: row["count"] for name, row in rows.items()} == {"one": 37, "two": 37}
    assert rows["one"]["reference"] != rows["two"]["reference"]


@pytest.mark.parametrize("fixed", [False, True])
def test_a_graph_of_another_exporter_is_scored(capsys, tiny, tmp_path, fixed):
    """One of a fixed shape takes two rows of eight tokens, and no others."""
    from tests.helpers.foreign import export_tiny

    base = tiny.base("bert", tokenizer=True)
    adapter = tiny.adapter(base)
    graph = export_tiny(
        base, tmp_path / "theirs.onnx", "text-classification", dynamo=False, fixed=fixed
    )
    built = call(capsys, "export", "--base", base, "--graph", graph, "--adapter", f"one={adapter}",
                 "--out", tmp_path / "out", "--quiet")  # fmt: skip
    assert built.code == 0, built.err
    chance = random.Random(11)
    rows = [{"text": words(chance, 2, 8), "label": chance.randrange(3)} for _ in range(35)]
    found = scored(capsys, tmp_path / "out", base, write(tmp_path / "data.jsonl", rows))["one"]
    import torch

    model = peft_model(base, adapter, "text-classification", labels_count=3)
    right = 0
    for row in rows:
        with torch.inference_mode():
            said = model(input_ids=torch.tensor([ids(row["text"])])).logits.argmax()
        right += int(said) == row["label"]
    assert found["reference"] == pytest.approx(right / 35)
    assert (found["count"], found["cut"]) == (35, 0)


def without_head(adapter, folder):
    """Copy an adapter for classification without the head that it brings."""
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(adapter, folder)
    held = load_file(folder / "adapter_model.safetensors")
    kept = {name: value for name, value in held.items() if "classifier" not in name}
    assert len(kept) < len(held)
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"task_type": None, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_labels_that_nobody_gave_are_those_of_the_head_s_config_or_numbers(capsys, tiny, tmp_path):
    import shutil

    named, own = tmp_path / "named", tmp_path / "own"
    shutil.copytree(tiny.base("bert", tokenizer=True), named)
    shutil.copytree(tiny.adapter(named), own)
    names = {"id2label": {"0": "no", "1": "yes", "2": "so"}}
    config = json.loads((named / "config.json").read_text())
    (named / "config.json").write_text(json.dumps({**config, **names, "num_labels": 3}))
    of_base = without_head(tiny.adapter(named), tmp_path / "of_base")
    (own / "config.json").write_text(json.dumps(names))
    adapters = {"one": tiny.adapter(named), "own": own, "of_base": of_base}
    build(named, adapters, tmp_path / "out")
    held = json.loads((tmp_path / "out/lora_export.json").read_text())["adapters"]
    numbered = ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert {name: record["labels"] for name, record in held.items()} == {
        "one": numbered, "own": ["no", "yes", "so"], "of_base": ["no", "yes", "so"],
    }  # fmt: skip
    chance = random.Random(12)
    texts = [words(chance) for _ in range(20)]
    scores = []
    for labels in (["no", "yes", "so"], [0, 1, 2]):
        rows = [{"text": text, "label": labels[at % 3]} for at, text in enumerate(texts)]
        data = write(tmp_path / "data.jsonl", rows)
        done = call(capsys, "verify", tmp_path / "out", "--base", named, "--dataset", data,
                    "--only", "own", "--only", "of_base", "--json")  # fmt: skip
        assert done.code == 0, done.err
        graphs = report(tmp_path / "out", "parity")["graphs"]
        scores.append([graphs[name]["dataset"]["reference"] for name in ("own", "of_base")])
    assert scores[0] == scores[1]


def test_every_difference_goes_to_a_file_and_a_wrong_graph_is_caught(capsys, tiny, tmp_path):
    from tests.cli.exports import scale_tensor

    chance = random.Random(7)
    rows = [{"text": words(chance), "label": chance.randrange(3)} for _ in range(80)]
    base = tiny.base("bert", tokenizer=True)
    adapter = tiny.adapter(base)
    out = tmp_path / "out"
    build(base, {"one": adapter}, out, labels=["a", "b", "c"])
    scale_tensor(out, "weights/one.safetensors", -2.0, containing="classifier")
    data, listed = write(tmp_path / "data.jsonl", rows), tmp_path / "differ.jsonl"
    done = call(
        capsys, "verify", out, "--base", base, "--dataset", data, "--disagreements", listed,
        "--quiet",
    )  # fmt: skip
    assert done.code == 5
    found = report(out, "parity")["graphs"]["one"]["dataset"]
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert len(lines) == found["disagreements"] > len(found["differing"]) == 20
    assert {line["adapter"] for line in lines} == {"one"}
    assert np.isfinite([line["reference_margin"] for line in lines]).all()
    assert "predictions" in done.out or "relative L2" in done.out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--metric", "f1"), "--dataset FILE.jsonl"),
        (("--disagreements", "x.jsonl"), "--dataset FILE.jsonl"),
        (("--base", "b", "--dataset", "x.jsonl", "--disagreements", "."), "is a folder"),
    ],
)
def test_what_is_said_of_no_data_set_is_refused(capsys, tmp_path, flags, says):
    done = call(capsys, "verify", tmp_path, *flags)
    assert done.code == 2
    assert says in done.err
