"""docs/genai.md: its commands, and its Python where there is onnxruntime-genai alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from lora_export.commands.layout import layout
from tests.cli.running import command
from tests.helpers.builds import build
from tests.helpers.chat_models import (
    STOP,
    greedy,
    loaded_tokenizer,
    save_chat_adapter,
    save_chat_base,
)

PAGE = (Path(__file__).resolve().parents[3] / "docs/genai.md").read_text("utf-8")
PROMPT = "<|user|>the quick brown fox</s><|assistant|>"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}[^\n]*\n(.*?)```", PAGE, re.DOTALL)


INCLUDE = os.environ.get("LORA_EXPORT_GENAI_INCLUDE")


@pytest.mark.skipif(INCLUDE is None, reason="needs the folder of ort_genai.h, which no wheel has")
def test_the_lines_in_cpp_write_what_those_in_python_do(clients, tmp_path):
    base = save_chat_base("Llama", tmp_path / "models/llama", num_hidden_layers=2)
    adapter = save_chat_adapter(base, tmp_path / "adapters/chat", seed=1)
    build(base, {"chat": adapter}, tmp_path / "build/llama", task="text-generation")
    layout(tmp_path / "build/llama", "genai", tmp_path / "build/llama-genai", adapter="chat")
    head, body = blocks("cpp")[0].split("\n\n", 1)
    told = (
        "for (size_t at = 0; at < generator->GetSequenceCount(0); ++at)\n"
        "  std::cerr << generator->GetSequenceData(0)[at] << ' ';\n"
    )
    (tmp_path / "chat.cpp").write_text(
        f"{head}\n#include <iostream>\nint main() {{\n{body}{told}}}\n"
    )
    packages = next((clients / "genai/lib").glob("python*/site-packages"))
    library = packages / "onnxruntime_genai/libonnxruntime-genai.so"
    (runtime,) = (packages / "onnxruntime/capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # genai looks for these names
        (tmp_path / name).symlink_to(runtime)
    subprocess.run(
        ["g++", "-std=c++17", f"-I{INCLUDE}", "chat.cpp", "-o", "chat", library,
         f"-Wl,-rpath,{library.parent}", "-Wl,--allow-shlib-undefined"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    ran = subprocess.run(["./chat"], cwd=tmp_path, check=True, capture_output=True, timeout=120,
                         env={"LD_LIBRARY_PATH": str(tmp_path)})  # fmt: skip
    prompt = loaded_tokenizer(base)(PROMPT)["input_ids"]
    found = [int(each) for each in ran.stderr.decode().split()]
    wanted = greedy(base, adapter, [prompt], 90 - len(prompt))[0]
    assert [each for each in found[len(prompt) :] if each != STOP] == wanted


def test_a_reader_gets_to_a_chat_and_to_many_adapters(clients, tmp_path):
    base = save_chat_base("Llama", tmp_path / "models/llama", num_hidden_layers=2)
    adapters = {
        name: save_chat_adapter(base, tmp_path / "adapters" / name, seed=seed)
        for name, seed in (("chat", 1), ("sql", 2))
    }
    for line in "".join(blocks("sh")).replace("\\\n", "").splitlines():
        _, *words = shlex.split(line)
        done = command(*words, folder=tmp_path)
        assert done.code == 0, done.err
    told = "print('\\ntokens', generator.get_sequence(0).tolist())"
    script = "\n".join(f"{block}\n{told}" for block in blocks("python")[:2])
    ran = subprocess.run([clients / "genai/bin/python", "-c", script], cwd=tmp_path, text=True,
                         capture_output=True, timeout=120, check=False)  # fmt: skip
    assert not ran.returncode, ran.stderr
    found = [json.loads(row) for row in re.findall(r"^tokens (.*)$", ran.stdout, re.MULTILINE)]
    tokenizer = loaded_tokenizer(base)
    for row, name, text in zip(found, ("chat", "sql"), (PROMPT, "the lazy dog"), strict=True):
        prompt = tokenizer(text)["input_ids"]
        limit = 90 if name == "chat" else 40
        assert row[: len(prompt)] == prompt
        wanted = greedy(base, adapters[name], [prompt], limit - len(prompt))[0]
        assert [each for each in row[len(prompt) :] if each != STOP] == wanted
