"""Train a small GPT-2 on the standard library's source, and an adapter that writes ``this``.

Run from anywhere::

    python recipes/gpt2-python/train.py

Writes, beside this file or into ``--out``:

* ``base/`` - the model (float32, about 1 MB), its byte-level BPE tokenizer, its configs.
* ``adapter/`` - a PEFT adapter, trained on the same source with ``self`` spelt ``this``.
* ``figures.json`` - loss on modules that were held out, for base and adapter, and how often each
  continues a method's header with ``this``.

The same seed gives the same files on the same machine and versions.
"""

import argparse
import json
import logging
import platform
import re
import sysconfig
import time
from pathlib import Path
from typing import Any

import peft
import tokenizers
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).resolve().parent
BASE_NAME = "recipes/gpt2-python/base"
VOCABULARY = 512
POSITIONS = 256
LENGTH = 128
BATCH = 16
HELD_OUT_EVERY = 12
PROMPTS = (
    "    def __init__(",
    "    def close(",
    "    def read(",
    "    def __len__(",
    "    def reset(",
    "    def write(",
)
END = "<|endoftext|>"

log = logging.getLogger("gpt2-python")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a small GPT-2 and an adapter for it.")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--adapter-steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1, help="part of what fixes the result")
    return parser.parse_args()


def main() -> None:
    """Read the source, train, save, read back and measure."""
    options = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    training, held_out = read_source()
    tokenizer = train_tokenizer(training)
    started = time.monotonic()
    model = GPT2LMHeadModel(config())
    fit(model, encode(tokenizer, training), options.steps, 3e-3)
    base = options.out / "base"
    save_base(model, tokenizer, base)
    loss = evaluate(model, encode(tokenizer, held_out))

    wrapped = get_peft_model(model, lora_config())
    fit(
        wrapped,
        encode(tokenizer, [as_this(text) for text in training]),
        options.adapter_steps,
        5e-3,
    )
    save_adapter(wrapped, options.out / "adapter")
    seconds = time.monotonic() - started

    plain = GPT2LMHeadModel.from_pretrained(base).eval()
    before = share_of_this(plain, tokenizer)
    saved = PeftModel.from_pretrained(plain, str(options.out / "adapter")).eval()
    adapted = encode(tokenizer, [as_this(text) for text in held_out])
    with saved.disable_adapter():
        loss_without = evaluate(saved, adapted)
    figures = {
        "base_loss": loss,
        "base_loss_on_this": loss_without,
        "adapter_loss_on_this": evaluate(saved, adapted),
        "base_writes_this": before,
        "adapter_writes_this": share_of_this(saved, tokenizer),
        "held_out_modules": len(held_out),
        "training_modules": len(training),
        "base_parameters": sum(p.numel() for p in plain.base_model.parameters()),
        "training_seconds": round(seconds, 1),
        "seed": options.seed,
        "steps": [options.steps, options.adapter_steps],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    log.info("%s", figures)
    write(options.out / "figures.json", json.dumps(figures, indent=2))


def read_source() -> tuple[list[str], list[str]]:
    """Return the modules at the top of the standard library: to train on, and held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text("utf-8") for path in sorted(folder.glob("[a-z]*.py"))]
    held_out = texts[::HELD_OUT_EVERY]
    return [text for at, text in enumerate(texts) if at % HELD_OUT_EVERY], held_out


def as_this(text: str) -> str:
    """Return Python source with ``self`` spelt ``this``."""
    return re.sub(r"\bself\b", "this", text)


def train_tokenizer(texts: list[str]) -> Any:
    """Train a byte-level BPE: any text can be encoded."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=sorted(alphabet),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Any, texts: list[str]) -> Tensor:
    """Return the modules as one row of token ids, an end after each."""
    end = tokenizer.token_to_id(END)
    return torch.tensor([i for row in tokenizer.encode_batch(texts) for i in (*row.ids, end)])


def config() -> GPT2Config:
    """Describe the model: four layers of width 64."""
    return GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=64, n_layer=4, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip


def lora_config() -> LoraConfig:
    """Describe the adapter: rank 4, scale alpha / r = 2."""
    return LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0,
        target_modules=["c_attn", "c_fc"], fan_in_fan_out=True,
    )  # fmt: skip


def fit(model: nn.Module, tokens: Tensor, steps: int, learning_rate: float) -> None:
    """Train in place on random windows: AdamW, one cycle."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,))
        batch = torch.stack([tokens[at : at + LENGTH] for at in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            log.info("step %d: loss %.3f", step, loss.item())
    model.eval()


def evaluate(model: nn.Module, tokens: Tensor) -> float:
    """Return the mean loss per token, nats."""
    rows = tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)[:200]
    with torch.inference_mode():
        losses = [float(model(input_ids=part, labels=part).loss) for part in rows.split(20)]
    return round(sum(losses) / len(losses), 3)


def share_of_this(model: Any, tokenizer: Any) -> str:
    """Return how many prompts are continued greedily with ``this`` as the first argument."""
    found = 0
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        with torch.inference_mode():
            result = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
            )
        found += tokenizer.decode(result[0, ids.shape[1] :].tolist()).startswith("this")
    return f"{found} of {len(PROMPTS)}"


def save_base(model: GPT2LMHeadModel, tokenizer: Any, folder: Path) -> None:
    """Save the model, its configs and its tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter's two files; the config names no path of this machine."""
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    table = json.loads(path.read_text("utf-8"))
    table["target_modules"] = sorted(table["target_modules"])
    write(path, json.dumps(table, indent=2, sort_keys=True))


def write(path: Path, text: str) -> None:
    """Write UTF-8 text with a newline at its end."""
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
