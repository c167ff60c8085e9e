"""Train the intents adapter, and measure it on sentences it has not seen.

Run from anywhere::

    python recipes/minilm-intents/train.py

Writes, beside this file or into ``--out``:

* ``adapter/`` - the PEFT adapter: rank 8 on the query and value projections, and
  the classification head. The pooler under the head stays the base model's own.
* ``heldout.jsonl`` - the held-out sentences with their labels.
* ``accuracy.json`` - accuracy of the adapter (unmerged, through PEFT, read back
  from the saved files) and of a linear probe on the frozen base.

The same seed gives the same files on the same machine and versions.
"""

import argparse
import json
import logging
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import yaml
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from probe import linear_probe_accuracy
from sentences import LABELS, Example, held_out_set, training_set
from torch import Tensor, nn
from transformers import AutoTokenizer, BertForSequenceClassification

HERE = Path(__file__).resolve().parent
DEFAULT_BASE = HERE.parents[1] / "models" / "all-MiniLM-L6-v2"
BASE_NAME = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 64
WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0
POOL_BATCHES = 20
EVALUATION_BATCH = 64
# What a BertModel checkpoint may lack: the head, which the adapter brings along.
HEAD_PARAMETERS = frozenset({"classifier.weight", "classifier.bias"})

log = logging.getLogger("minilm-intents")

Batch = dict[str, Tensor]
Row = dict[str, list[int]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the intents adapter.")
    parser.add_argument("--base", type=Path, default=DEFAULT_BASE, help="checkpoint directory")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--train-per-label", type=int, default=260)
    parser.add_argument("--heldout-per-label", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2, help="part of what fixes the result")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data, train, save, read back and measure."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(options.seed)
    check_recipe_labels(HERE / "recipe.yaml")

    training = training_set(options.train_per_label, options.seed)
    held_out = held_out_set(options.heldout_per_label, options.seed + 1, training)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    train_rows, test_rows = encode(tokenizer, training), encode(tokenizer, held_out)

    base = load_base(options.base)
    probes = probe_accuracies(base, train_rows, test_rows)
    log.info("linear probe: %s", probes)

    started = time.monotonic()
    model = get_peft_model(base, lora_config())
    train(model, train_rows, options.epochs, options.batch_size, options.learning_rate)
    seconds = time.monotonic() - started
    save_adapter(model, options.out / "adapter")

    saved = PeftModel.from_pretrained(load_base(options.base), str(options.out / "adapter"))
    predicted = predict(saved, test_rows)
    accuracy = sum(
        LABELS[guess] == example.label for guess, example in zip(predicted, held_out, strict=True)
    ) / len(held_out)
    log.info("adapter: %.4f after %.0f s", accuracy, seconds)
    log_confusions(predicted, held_out)

    write_lines(
        options.out / "heldout.jsonl",
        [json.dumps({"text": example.text, "label": example.label}) for example in held_out],
    )
    figures = {
        "adapter_accuracy": round(accuracy, 4),
        "linear_probe_accuracy": max(probes.values()),
        "linear_probe_by_features": probes,
        "n_heldout": len(held_out),
        "n_train": len(training),
        "n_labels": len(LABELS),
        "epochs": options.epochs,
        "seed": options.seed,
        "threads": options.threads,
        "training_seconds": round(seconds, 1),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "base": BASE_NAME,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
    write_lines(options.out / "accuracy.json", [json.dumps(figures, indent=2)])


def check_recipe_labels(recipe: Path) -> None:
    """Refuse to train class ids that the recipe would name differently."""
    named = tuple(yaml.safe_load(recipe.read_text(encoding="utf-8"))["labels"])
    if named != LABELS:
        message = f"{recipe.name} names the labels {named}, sentences.py {LABELS}: make them agree"
        raise SystemExit(message)


def load_base(directory: Path) -> BertForSequenceClassification:
    """Load the checkpoint with a new head, and make sure that only the head is new."""
    model, report = BertForSequenceClassification.from_pretrained(
        directory,
        num_labels=len(LABELS),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        output_loading_info=True,
    )
    missing = set(report["missing_keys"])
    if missing != HEAD_PARAMETERS:
        message = f"{directory} should lack {sorted(HEAD_PARAMETERS)} and lacks {sorted(missing)}"
        raise SystemExit(message)
    return model


def lora_config() -> LoraConfig:
    """Describe the adapter: rank 8, scale alpha / r = 2, and a head of its own."""
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
    )


def encode(tokenizer: Any, examples: Sequence[Example]) -> list[Row]:
    """Turn every sentence into token ids, without padding, and add its class id."""
    encoded = tokenizer(
        [example.text for example in examples], truncation=True, max_length=MAX_TOKENS
    )
    return [
        {"input_ids": ids, "labels": [LABELS.index(example.label)]}
        for ids, example in zip(encoded["input_ids"], examples, strict=True)
    ]


def batches(rows: Sequence[Row], groups: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Yield the rows of each group, padded with zeros to the longest of the group.

    Each batch holds ``input_ids`` and ``attention_mask`` ``(batch, tokens)`` and
    ``labels`` ``(batch,)``, all int64.
    """
    for group in groups:
        chosen = [rows[index] for index in group]
        ids = nn.utils.rnn.pad_sequence(
            [torch.tensor(row["input_ids"]) for row in chosen], batch_first=True
        )
        labels = torch.tensor([row["labels"][0] for row in chosen])
        yield {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels}


def in_order(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    """Cut ``indices`` into groups of ``size``; the last one may be smaller."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def shuffled(rows: Sequence[Row], size: int) -> list[Sequence[int]]:
    """Return random groups of rows, each of rows of about the same length.

    Rows are drawn at random into pools, sorted by length within each pool and cut
    into groups, which are shuffled: little padding, and no fixed company.
    """
    order = torch.randperm(len(rows)).tolist()
    by_length = [
        index
        for pool in in_order(order, size * POOL_BATCHES)
        for index in sorted(pool, key=lambda i: len(rows[i]["input_ids"]))
    ]
    groups = in_order(by_length, size)
    return [groups[at] for at in torch.randperm(len(groups)).tolist()]


def train(
    model: nn.Module,
    rows: Sequence[Row],
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> None:
    """Train the adapter and the head in place: AdamW, warm-up, linear decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.01)
    steps = epochs * -(-len(rows) // batch_size)
    warmup = max(1, int(steps * WARMUP_SHARE))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    )
    model.train()
    for epoch in range(epochs):
        losses = []
        for batch in batches(rows, shuffled(rows, batch_size)):
            loss = model(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        log.info("epoch %d: loss %.4f", epoch + 1, sum(losses) / len(losses))


def predict(model: nn.Module, rows: Sequence[Row]) -> list[int]:
    """Return the class id with the largest logit for every row."""
    model.eval()
    with torch.inference_mode():
        return [
            guess
            for batch in batches(rows, in_order(range(len(rows)), EVALUATION_BATCH))
            for guess in model(**batch).logits.argmax(dim=1).tolist()
        ]


def probe_accuracies(
    model: BertForSequenceClassification,
    train_rows: Sequence[Row],
    test_rows: Sequence[Row],
) -> dict[str, float]:
    """Measure linear probes on the frozen base: mean of the tokens, and pooler."""
    train_mean, train_pooled, train_y = features(model, train_rows)
    test_mean, test_pooled, test_y = features(model, test_rows)
    return {
        "mean": round(linear_probe_accuracy(train_mean, train_y, test_mean, test_y), 4),
        "pooler": round(linear_probe_accuracy(train_pooled, train_y, test_pooled, test_y), 4),
    }


def features(
    model: BertForSequenceClassification, rows: Sequence[Row]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the token mean ``(n, 384)``, the pooler output ``(n, 384)`` and the ids ``(n,)``."""
    model.eval()
    means, pooled, labels = [], [], []
    with torch.no_grad():
        for batch in batches(rows, in_order(range(len(rows)), EVALUATION_BATCH)):
            labels.append(batch["labels"])
            mask = batch["attention_mask"].unsqueeze(-1)  # (batch, tokens, 1)
            output = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])
            means.append((output.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1))
            pooled.append(output.pooler_output)
    return torch.cat(means), torch.cat(pooled), torch.cat(labels)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Save the adapter, and the names of its classes; the config names no path of this machine."""
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        model.save_pretrained(scratch, save_embedding_layers=False)
        config_file = Path(scratch, "adapter_config.json")
        config = json.loads(config_file.read_text(encoding="utf-8"))
        for name in ("target_modules", "modules_to_save"):  # as sets: their order is chance
            config[name] = sorted(set(config[name]))
        write_lines(config_file, [json.dumps(config, indent=2, sort_keys=True)])
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            Path(scratch, name).replace(directory / name)
    names = {"id2label": {str(index): label for index, label in enumerate(LABELS)}}
    write_lines(directory / "config.json", [json.dumps(names, indent=2)])


def log_confusions(predicted: Sequence[int], examples: Sequence[Example]) -> None:
    """Show the sentences that went wrong, the commonest confusions first."""
    wrong = [
        (example.label, LABELS[guess], example.text)
        for guess, example in zip(predicted, examples, strict=True)
        if LABELS[guess] != example.label
    ]
    common = Counter((label, guess) for label, guess, _ in wrong)
    for label, guess, text in sorted(wrong, key=lambda row: (-common[row[:2]], row)):
        log.info("%s taken for %s: %s", label, guess, text)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write UTF-8 text in one step."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text("\n".join(lines) + "\n", encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    main()
