"""docs/genai.md: its commands, and its Python where there is onnxruntime-genai alone."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

from tests.cli.running import command
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
