"""Write a tokenizer of words `<0>`, `<1>`, … for a random checkpoint: some tools demand one.

Usage: _word_tokenizer.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def main() -> None:
    folder = Path(sys.argv[1])
    count = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    words = {f"<{index}>": index for index in range(count)}
    unknown, begin, end = list(words)[:3]
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": unknown, "bos_token": begin, "eos_token": end, "pad_token": unknown}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


if __name__ == "__main__":
    main()
