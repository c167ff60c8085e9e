"""The peers' first step, run in their environment: PEFT's merge, saved as a checkpoint.

Usage: python _peer_merge.py BASE ADAPTER OUT AUTO_CLASS
"""

from __future__ import annotations

import sys

import transformers
from peft import PeftModel


def main() -> None:
    base, adapter, output, auto_class = sys.argv[1:]
    model = getattr(transformers, auto_class).from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(output)


if __name__ == "__main__":
    main()
