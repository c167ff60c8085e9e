"""Jobs for optimum-onnx and sentence-transformers: JSON on stdin, JSON on stdout.

A job is ``{folder, task, texts | arrays, new_tokens}``; its result has arrays by their names, the
tokens that were written, the labels that a pipeline gives, or ``error``.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import transformers
from optimum import onnxruntime as ort

transformers.logging.set_verbosity_error()

CLASSES = {
    "text-classification": ort.ORTModelForSequenceClassification,
    "token-classification": ort.ORTModelForTokenClassification,
    "question-answering": ort.ORTModelForQuestionAnswering,
    "fill-mask": ort.ORTModelForMaskedLM,
    "feature-extraction": ort.ORTModelForFeatureExtraction,
    "sentence-similarity": ort.ORTModelForFeatureExtraction,
    "image-classification": ort.ORTModelForImageClassification,
    "text-generation": ort.ORTModelForCausalLM,
    "text2text-generation": ort.ORTModelForSeq2SeqLM,
    "automatic-speech-recognition": ort.ORTModelForSpeechSeq2Seq,
}
GENERATES = ("text-generation", "text2text-generation", "automatic-speech-recognition")
PIPELINES = ("text-classification", "token-classification")


def tensor(values):
    found = np.array(values)
    return torch.tensor(found.astype(np.float32) if found.dtype == np.float64 else found)


def tables():
    """Return what ``lora_export/layouts/data/model_types.json`` has of this runtime."""
    from importlib.metadata import version

    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    pairs = [
        each if isinstance(each, tuple) else (each,) for each in TOKENIZER_MAPPING_NAMES.values()
    ]
    names = {name for pair in pairs for name in pair if name}
    return {
        "version": version("optimum-onnx"),
        "transformers": transformers.__version__,
        "model_types": sorted(CONFIG_MAPPING_NAMES),
        "tokenizer_classes": sorted(names | {"PreTrainedTokenizerFast"}),
    }


def result_of(job):
    folder, task, texts = job["folder"], job["task"], job.get("texts")
    if task == "tables":
        return tables()
    if task == "sentences":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(folder, backend="onnx", device="cpu", local_files_only=True)
        return {"embeddings": model.encode(texts).tolist(), "longest": model.max_seq_length}
    model = CLASSES[task].from_pretrained(folder)
    feeds = {name: tensor(values) for name, values in job.get("arrays", {}).items()}
    found = {}
    if texts:
        side = "left" if task == "text-generation" else "right"
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side=side)
        feeds = dict(tokenizer(texts, return_tensors="pt", padding=True))
        found["input_ids"] = feeds["input_ids"].tolist()
    if task in GENERATES:
        settings = {"max_new_tokens": job["new_tokens"], **job.get("settings", {})}
        found["tokens"] = model.generate(**feeds, do_sample=False, **settings).tolist()
        if texts:
            rows = found["tokens"]
            found["texts"] = tokenizer.batch_decode(rows, skip_special_tokens=True)
        return found
    outputs = model(**feeds)
    found |= {name: value.tolist() for name, value in outputs.items() if value is not None}
    if texts and task in PIPELINES:
        run_pipeline = transformers.pipeline(task, model=model, tokenizer=tokenizer)
        found["labels"] = [
            row["label"] if "label" in row else [each["entity"] for each in row]
            for row in run_pipeline(texts)
        ]
    return found


def run(job):
    try:
        return result_of(job)
    except Exception as error:  # noqa: BLE001  (a result too, for the test to read)
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    json.dump([run(each) for each in json.load(sys.stdin)], sys.stdout)
