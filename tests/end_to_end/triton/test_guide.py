"""The quick start of docs/triton.md, run as it is written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np

from lora_export.runtime import open_export
from tests.cli.running import command
from tests.end_to_end.triton.server import Server
from tests.helpers.builds import build
from tests.helpers.triton import CLOSE, variant

PAGE = (Path(__file__).resolve().parents[3] / "docs/triton.md").read_text("utf-8")


def test_commands_and_client(home, tiny, tmp_path):
    section = re.search(r"^## Quick start\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)[1]
    commands = re.search(r"```sh[^\n]*\n(.*?)```", section, re.DOTALL)[1].splitlines()
    client = re.search(r"```python[^\n]*\n(.*?)```", section, re.DOTALL)[1]
    assert len(commands) == 5
    base = tiny.base("bert", "text-classification", tokenizer=True)
    first = tiny.adapter(base, seed=21)
    adapters = {n: variant(first, tmp_path / "adapters" / n, at)
                for at, n in enumerate(("mnli", "sst2", "qqp"))}  # fmt: skip
    del adapters["qqp"]
    swap = tmp_path / "build/swap"
    build(base, adapters, swap, mode="swappable")
    repository = tmp_path / "build/models"
    server = Server(home, repository, tmp_path / "log")
    try:
        for number, line in enumerate(commands):
            _, *words = shlex.split(line, comments=True)
            done = command(*words, folder=tmp_path)
            assert done.code == 0, done.err
            if number == 1:
                server.start()
        assert "localhost:8001" in client
        values: dict[str, np.ndarray] = {}
        exec(client.replace("localhost:8001", server.grpc), values)
    finally:
        server.stop()
    shutil.rmtree(repository)
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(swap / "hf/tokenizer.json"))
    with open_export(swap) as session:
        for row, (text, name) in enumerate((("play some jazz", "mnli"), ("stop", "sst2"))):
            encoded = tokenizer.encode(text)
            feeds = {
                "input_ids": np.array([encoded.ids]),
                "attention_mask": np.array([encoded.attention_mask]),
                "token_type_ids": np.array([encoded.type_ids]),
            }
            wanted = session.run(feeds, adapter=name)["logits"]
            np.testing.assert_allclose(values["logits"][row], wanted[0], **CLOSE)
