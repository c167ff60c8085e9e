"""Companions of adapters in exports of every mode: transformers loads the adapter's own folder
and the files of the export, and both have to say the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.core.manifest import read_manifest
from lora_export.exports.adapter_companions import companions_of, copy_companions
from tests.cli.exports import manifest_of, run_graph
from tests.cli.running import call, snapshot
from tests.helpers.own_tokenizer import (
    CHAT,
    TEXT,
    loaded,
    save_base_tokenizer,
    save_own_tokenizer,
    table,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

MODES = ("merged", "swappable", "batched")
OWN = {
    "hf/chat/chat_template.jinja",
    "hf/chat/config.json",
    "hf/chat/generation_config.json",
    "hf/chat/tokenizer.json",
    "hf/chat/tokenizer_config.json",
}


@dataclass(frozen=True)
class Made:
    """A base, two adapters and their exports by mode."""

    base: Path
    chat: Path
    plain: Path
    exports: dict[str, Path]


@pytest.fixture(scope="module")
def made(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Made:
    from lora_export.commands.build import merge_and_build
    from lora_export.commands.recipe import make_recipe

    root = tmp_path_factory.mktemp("companions")
    base = root / "base"
    shutil.copytree(tiny.base("llama", "text-generation"), base)
    save_base_tokenizer(base)
    table(base / "generation_config.json", eos_token_id=2)
    (base / "special_tokens_map.json").write_text('{"eos_token": "</s>"}')
    chat, plain = root / "chat", root / "plain"
    for folder, seed in ((chat, 1), (plain, 2)):
        shutil.copytree(tiny.adapter(base, task="text-generation", seed=seed, labels_count=None),
                        folder)  # fmt: skip
    save_own_tokenizer(base, chat)
    exports = {}
    for mode in MODES:
        exports[mode] = root / mode
        keys = {"base": str(base), "mode": mode, "output": str(root / mode),
                "adapters": [{"name": "chat", "source": str(chat)},
                             {"name": "plain", "source": str(plain)}],
                "verify": {"enabled": False}, "latency": {"enabled": False}}  # fmt: skip
        merge_and_build(make_recipe(keys, folder=root))
    return Made(base, chat, plain, exports)


def hf_files(export: Path) -> set[str]:
    return {name for name in manifest_of(export)["files"] if name.startswith("hf/")}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_the_files_that_differ(made, mode, tmp_path) -> None:
    export = made.exports[mode]
    record = manifest_of(export)["adapters"]
    assert {name for name in hf_files(export) if name.count("/") > 1} == OWN
    assert record["chat"]["companions"]["hidden"] == ["special_tokens_map.json"]
    assert record["chat"]["companions"]["taken"][:2] == ["tokenizer", "chat template"]
    assert "companions" not in record["plain"]
    copy_companions(export, read_manifest(export), tmp_path / "chat", "chat")
    copy_companions(export, read_manifest(export), tmp_path / "plain", "plain")
    own, found = loaded(made.chat), loaded(tmp_path / "chat")
    assert found(TEXT).input_ids == own(TEXT).input_ids == [190, 5, 6, 191]
    assert (found.eos_token_id, found.chat_template) == (191, CHAT)
    assert loaded(tmp_path / "plain")(TEXT).input_ids == loaded(made.base)(TEXT).input_ids
    settings = table(export / "hf/chat/generation_config.json")
    assert settings["eos_token_id"] == [191, 2]
    assert table(export / "hf/chat/config.json")["eos_token_id"] == 191
    assert table(export / "hf/config.json")["eos_token_id"] == 2


@pytest.mark.parametrize("mode", MODES)
def test_add_replace_and_remove(made, mode, tmp_path, capsys) -> None:
    export = tmp_path / "out"
    shutil.copytree(made.exports[mode], export)
    assert call(capsys, "remove", export, "chat").code == 0
    assert not (export / "hf/chat").exists()
    assert not [name for name in hf_files(export) if name.startswith("hf/chat/")]
    added = call(capsys, "add", export, "--adapter", f"chat={made.chat}")
    assert added.code == 0, added.err
    assert "tokenizer" in added.out
    first = snapshot(export / "hf")
    assert first == snapshot(made.exports[mode] / "hf")
    replaced = call(capsys, "add", export, "--adapter", f"chat={made.plain}", "--replace")
    assert replaced.code == 0
    assert not (export / "hf/chat").exists()
    assert call(capsys, "add", export, "--adapter", f"chat={made.chat}", "--replace").code == 0
    assert snapshot(export / "hf") == first
    done = call(capsys, "inspect", export, "--hash", "--json")
    assert done.code == 0
    assert not done.document.get("problems")


def test_replaced_in_an_export_with_a_relative_path(made, tmp_path, capsys, monkeypatch) -> None:
    shutil.copytree(made.exports["merged"], tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    replaced = call(capsys, "add", "out", "--adapter", f"chat={made.chat}", "--replace")
    assert replaced.code == 0, replaced.err
    assert snapshot(tmp_path / "out/hf") == snapshot(made.exports["merged"] / "hf")


def test_damage_is_found(made, tmp_path, capsys) -> None:
    export = tmp_path / "out"
    shutil.copytree(made.exports["merged"], export)
    file = export / "hf/chat/tokenizer.json"
    file.write_text(file.read_text().replace("w7", "w8"))
    for command in (
        ("verify", export),
        ("generate", export, "--adapter", "chat", "--prompt", "w5"),
    ):
        done = call(capsys, *command)
        assert done.code == 3, done.out
        assert "hf/chat/tokenizer.json" in done.message
    assert call(capsys, "generate", export, "--adapter", "plain", "--prompt", "w5").code == 0


def test_generate_uses_the_adapter_s_tokenizer_and_stops_at_its_eos(made, capsys) -> None:
    """The oracle is transformers: PEFT on the base, with the tokenizer of the adapter's folder."""
    import torch
    import transformers
    from peft import PeftModel

    base = transformers.AutoModelForCausalLM.from_pretrained(made.base)
    model = PeftModel.from_pretrained(base, str(made.chat)).eval()
    ids = loaded(made.chat)(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False,
                                eos_token_id=191, pad_token_id=0)  # fmt: skip
    for mode in MODES:
        done = call(capsys, "generate", made.exports[mode], "--adapter", "chat", "--prompt", TEXT,
                    "--max-new-tokens", 12, "--json")  # fmt: skip
        assert done.code == 0, done.err
        found = done.document["continuations"][0]["tokens"]
        assert found == wanted[0, ids.shape[1] :].tolist()


def test_a_text_ends_at_the_token_that_only_the_adapter_ends_it_with(
    made, tmp_path, capsys
) -> None:
    export = tmp_path / "out"
    shutil.copytree(made.exports["merged"], export)
    arguments = ("--prompt", TEXT, "--max-new-tokens", 12, "--json")
    before = call(capsys, "generate", export, "--adapter", "chat", *arguments).document
    third = before["continuations"][0]["tokens"][2]
    own = tmp_path / "own"
    shutil.copytree(made.chat, own)
    table(own / "generation_config.json", eos_token_id=[third])
    assert call(capsys, "add", export, "--adapter", f"chat={own}", "--replace").code == 0
    after = call(capsys, "generate", export, "--adapter", "chat", *arguments).document
    assert after["continuations"][0]["tokens"][-1] == third
    assert after["continuations"][0]["stopped"]


def test_a_bundle_takes_the_files_of_its_adapters_only(made) -> None:
    from lora_export.bundle.adapter_selection import select

    manifest = read_manifest(made.exports["merged"])
    chosen = select(manifest, ["plain"])
    assert not [name for name in chosen.files if name.startswith("hf/chat/")]
    assert set(select(manifest, ["chat"]).files) >= OWN


def test_an_export_without_the_new_keys_is_read(made, tmp_path, capsys) -> None:
    export = tmp_path / "out"
    shutil.copytree(made.exports["merged"], export)
    shutil.rmtree(export / "hf/chat")
    manifest = manifest_of(export)
    del manifest["adapters"]["chat"]["companions"]
    manifest["files"] = {n: s for n, s in manifest["files"].items() if n not in OWN}
    (export / "lora_export.json").write_text(json.dumps(manifest))
    assert companions_of(export, read_manifest(export), "chat") == companions_of(
        export, read_manifest(export)
    )
    assert call(capsys, "generate", export, "--adapter", "chat", "--prompt", "w5").code == 0


@pytest.mark.slow
def test_a_decoder_that_classifies_finds_the_end_by_the_adapter_s_padding(
    tiny: TinyModels, tmp_path, capsys
) -> None:
    """The base names no padding token; training set that of the tokenizer, as users do."""
    import torch
    import transformers
    from peft import PeftModel

    task = "text-classification"
    base, own, out = tmp_path / "base", tmp_path / "own", tmp_path / "out"
    shutil.copytree(tiny.base("llama", task), base)
    shutil.copytree(tiny.adapter(base, task=task), own)
    config = table(base / "config.json")
    del config["pad_token_id"]
    (base / "config.json").write_text(json.dumps(config))
    save_base_tokenizer(own, pad_token="w7")
    done = call(capsys, "merge-and-build", "--base", base, "--adapter", f"own={own}",
                "--no-latency", "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    assert table(out / "hf/config.json")["pad_token_id"] == 7
    model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model.config.pad_token_id = 7
    model = PeftModel.from_pretrained(model, str(own)).eval()
    feeds = loaded(own)(["w5 w6 </s>", "w5 w6 w9 w11 w12"], padding=True, return_tensors="np")
    feeds = {name: feeds[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(each) for name, each in feeds.items()}).logits
    found = run_graph(out, "own", feeds)
    assert np.linalg.norm(found - wanted.numpy()) < 1e-5 * np.linalg.norm(wanted.numpy())
    assert call(capsys, "verify", out, "--base", base).code == 0
    other = tmp_path / "other"
    shutil.copytree(tiny.adapter(base, task=task, seed=2), other)
    save_base_tokenizer(other, pad_token="w9")
    added = call(capsys, "add", out, "--adapter", f"other={other}")
    assert added.code == 0
    assert "pads texts with the token 9" in added.err
    both = call(capsys, "merge-and-build", "--base", base, "--adapter", f"own={own}", "--adapter",
                f"other={other}", "--out", tmp_path / "both")  # fmt: skip
    assert both.code == 4
    assert "'own' pads texts with the token 7, 'other' with 9" in both.message


def test_a_combined_adapter_has_the_tokenizer_of_the_one_that_brings_it(
    made, tmp_path, capsys
) -> None:
    export = tmp_path / "out"
    shutil.copytree(made.exports["merged"], export)
    done = call(capsys, "add", export, "--adapter", f"chat={made.chat}", "--adapter",
                f"plain={made.plain}", "--combine", "cat", "--combine-name", "both")  # fmt: skip
    assert done.code == 0, done.err
    copy_companions(export, read_manifest(export), tmp_path / "both", "both")
    assert loaded(tmp_path / "both")(TEXT).input_ids == [190, 5, 6, 191]
