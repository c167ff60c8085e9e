"""An export whose reports have something in every section, written by hand: no torch."""

from __future__ import annotations

import json
import math
import random
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.files import sha256_of_file
from lora_export.core.manifest import (
    AdapterRecord,
    BaseRecord,
    GraphRecord,
    Manifest,
    Verification,
    write_manifest,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HOSTILE", "save_showcase"]

HOSTILE: Final = '<script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)>'
"""What a stranger might call an adapter's source, a label, a sentence."""

_SHA: Final = "ab" * 32
_VERDICTS: Final[dict[str, Verification]] = {
    "support-intents": "pass",
    "billing_intents": "ambiguous",
    "a-very-long-adapter-name-of-sixty-four-characters-as-allowed-her": "fail",
}
_METRICS: Final = {
    "max_abs": 2e-6, "cosine": 1.0, "top1_agreement": 1.0, "top1_near_ties": 0,
    "top1_clear_disagreements": 0, "mean_kl": 1e-13, "rows": 12, "finite": True,
}  # fmt: skip


def save_showcase(export_dir: Path) -> Path:
    """Write the export; return its folder."""
    export_dir.mkdir(parents=True)
    chance = random.Random(4)
    for folder in ("weights", "reports", "hf"):
        (export_dir / folder).mkdir()
    (export_dir / "weights/base.safetensors").write_bytes(bytes(900_000))
    (export_dir / "base.onnx").write_bytes(bytes(90_000))
    for name in _VERDICTS:
        (export_dir / f"{name}.onnx").write_bytes(bytes(90_000))
        (export_dir / f"weights/{name}.safetensors").write_bytes(bytes(60_000))
    reports = {
        "parity": {"environment": _environment(), "graphs": _parity()},
        "latency": {"environment": _environment(), "graphs": _latency(chance)},
        "fidelity": {"environment": _environment(), "graphs": _fidelity(chance)},
        "bench": _bench(chance),
        "quantization": {"environment": _environment(), "graphs": _quantization(chance)},
    }
    for name, report in reports.items():
        (export_dir / f"reports/{name}.json").write_text(json.dumps(report, indent=1))
    files = {
        path.relative_to(export_dir).as_posix(): sha256_of_file(path)
        for path in sorted(export_dir.rglob("*"))
        if path.is_file()
    }
    write_manifest(export_dir, _manifest(files))
    return export_dir


def _manifest(files: dict[str, str]) -> Manifest:
    graphs = {"base": ("base", "pass"), **{n: ("merged", v) for n, v in _VERDICTS.items()}}
    return Manifest(
        tool="lora-export 0.1.0",
        base=BaseRecord(
            source="./models/all-MiniLM-L6-v2", model_type="bert",
            model_class="BertForSequenceClassification", task="text-classification",
            dtype="float32", fingerprint=_SHA, labels=["yes", HOSTILE],
        ),
        parameters={},
        graphs={
            name: GraphRecord(
                mode=mode, onnx=f"{name}.onnx", opset=20, sha256=_SHA, verification=verdict,
                loss="ungated" if name == "base" else verdict,
                weights=["weights/base.safetensors"]
                + ([f"weights/{name}.safetensors"] if mode == "merged" else []),
            )
            for name, (mode, verdict) in graphs.items()
        },
        adapters={
            name: AdapterRecord(
                source=HOSTILE if index == 2 else f"./adapters/{name}", format="peft",
                rank=8, merged_from="checkpoint", tensors_total=26, tensors_applied=26,
                missing_in_base=["classifier.weight", "classifier.bias"], sha256=_SHA,
                labels=["refund", "invoice", HOSTILE] if index == 2 else ["refund", "invoice"],
                scale=0.5 if index == 1 else None,
            )
            for index, name in enumerate(_VERDICTS)
        },
        files=files,
    )  # fmt: skip


def _environment() -> dict[str, Any]:
    return {
        "machine": "x86_64", "system": "Linux", "processors": 2, "python": "3.11.7",
        "packages": {"lora-export": "0.1.0", "onnxruntime": "1.32.0", "torch": "2.13.0+cpu"},
        "date": "2026-11-30",
    }  # fmt: skip


def _parity() -> dict[str, Any]:
    errors = {"base": 2.1e-7, **dict(zip(_VERDICTS, (3.4e-7, 4.9e-7, 0.031), strict=True))}
    reasons = {
        "pass": "within the tolerance of the dtype and of the adapter's effect",
        "ambiguous": "2 near-tied top-1 choices fall differently",
        "fail": f"relative L2 error 0.031 is above the tolerance 1e-05 {HOSTILE}",
    }
    rows: dict[str, Any] = {}
    for name, error in errors.items():
        verdict = _VERDICTS.get(name, "pass")
        rows[name] = {
            "verdict": verdict, "reason": reasons[verdict], "dtype": "float32", "tolerance": 1e-5,
            "effect": None if name == "base" else 0.42, "effect_share_limit": 0.05,
            "against": "transformers, float32" if name == "base" else "PEFT, unmerged, float32",
            "metrics": {**_METRICS, "relative_l2": error}, "inputs": [[1, 8], [2, 24]],
        }  # fmt: skip
        if name != "base":
            rows[name]["dataset"] = _dataset(verdict)
    return rows


def _dataset(verdict: str) -> dict[str, Any]:
    differ = 0 if verdict == "pass" else 2
    return {
        "metric": "accuracy", "count": 400, "cut": 0, "base": 0.31, "reference": 0.915,
        "graph": 0.915 - differ / 400, "difference": -differ / 400,
        "difference_interval": [-0.0125 * bool(differ), 0.0], "confidence": 0.95, "margin": 0.01,
        "mcnemar": {"only_graph": 0, "only_reference": differ, "p_value": 0.5 if differ else 1.0},
        "verdict": "ambiguous" if differ else "pass", "reason": "as above",
        "disagreements": differ, "clear_disagreements": 0, "differing_shown": differ,
        "differing": [
            {"example": 17 + i, "text": f"I was charged twice {HOSTILE}", "label": 0, "graph": 1,
             "reference": 0, "reference_margin": 1e-6}
            for i in range(differ)
        ],
    }  # fmt: skip


def _latency(chance: random.Random) -> dict[str, Any]:
    rows = {}
    for name, centre in zip(_VERDICTS, (1.004, 1.03, 1.16), strict=True):
        low, high = centre - 0.03, centre + 0.02 + chance.random() / 100
        verdict = "fail" if low > 1.05 else ("ambiguous" if high > 1.05 else "pass")
        rows[name] = {
            "verdict": verdict, "reason": f"the interval [{low:.3f}, {high:.3f}] and 1.05",
            "median_ms": 4.2 * centre, "p90_ms": 5.0, "base_median_ms": 4.2, "base_p90_ms": 4.8,
            "ratio": centre, "ratio_interval": [low, high], "confidence": 0.95, "max_ratio": 1.05,
            "rounds": 120, "batch": 1, "length": 128, "runner": "onnxruntime, CPU",
        }  # fmt: skip
    return rows


def _fidelity(chance: random.Random) -> dict[str, Any]:
    rows = {}
    for exponent, name in zip((-7, -4, -1), _VERDICTS, strict=True):
        tensors = {
            f"bert.encoder.layer.{layer}.attention.self.{module}.weight": {
                "dtype": "float32",
                "relative_error": 10 ** (exponent + chance.uniform(-1, 1)),
                "unmoved_share": chance.random() / 100,
            }
            for layer in range(6)
            for module in ("query", "value")
        }
        errors = [row["relative_error"] for row in tensors.values()]
        rows[name] = {
            "relative_error": math.fsum(errors) / len(errors), "unmoved_share": 0.004,
            "lossy": [each for each, row in tensors.items() if row["relative_error"] > 0.1],
            "tensors": tensors,
        }  # fmt: skip
    return rows


def _quantization(chance: random.Random) -> dict[str, Any]:
    gains = {"pass": 1.0, "ambiguous": 0.83, "fail": 0.31}
    rows: dict[str, Any] = {"base": _lost("ungated", "no limit was set", chance, None)}
    for name, verdict in _VERDICTS.items():
        reason = f"the adapter {name!r} does not survive quantization {HOSTILE}"
        rows[name] = _lost(verdict, reason, chance, gains[verdict])
        rows[name]["dataset"] = _dataset(verdict)
    return rows


def _lost(verdict: str, reason: str, chance: random.Random, gain: float | None) -> dict[str, Any]:
    layers = {
        f"bert.encoder.layer.{layer}.{module}.weight": {
            "scheme": "int4", "block_size": 32, "relative_error": chance.uniform(0.07, 0.1),
            "error_over_delta": gain and chance.uniform(2, 9),
            "gain": gain and gain * chance.uniform(0.9, 1.1),
            "cosine": gain and min(1.0, chance.uniform(0.9, 1.0) * gain),
        }
        for layer in range(12)
        for module in ("attention.self.query", "attention.self.value", "output.dense")
    }  # fmt: skip
    gates = [
        {"gate": "min_gain", "limit": 0.8, "value": gain, "interval": [0.9 * gain, 1.1 * gain],
         "verdict": verdict, "reason": f"the gain {gain} is not below 0.8"},
    ] if gain is not None else []  # fmt: skip
    return {
        "verdict": verdict, "reason": reason,
        "scheme": {"weights": "int4", "block_size": 32, "method": "search"},
        "exactness": {"verdict": "pass", "reason": "", "weights": None, "graph": None},
        "loss": {
            "effect": gain and 0.42, "gain": gain,
            "gain_interval": [0.9 * gain, 1.1 * gain] if gain is not None else None,
            "cosine": gain and 0.93, "relative_l2": 0.071, "mean_kl": 0.0051,
            "top1_agreement": 0.98, "rows": 11, "finite": True, "accuracy_level": 4,
        },
        "gates": gates, "layers": layers, "kept": {"classifier.weight": f"a head {HOSTILE}"},
        "float_bytes": 900_000, "quantized_bytes": 271_000,
    }  # fmt: skip


def _bench(chance: random.Random) -> dict[str, Any]:
    subjects = {"ort-cpu:base": 4.2, "ort-cpu:support-intents": 4.22, "torch:support-intents": 11.3}
    cells = []
    for batch, length in ((1, 32), (4, 128)):
        scale = batch * length / 64
        times = {}
        for key, centre in subjects.items():
            samples = [centre * scale * (1 + abs(chance.gauss(0, 0.04))) for _ in range(40)]
            times[key] = {
                "median_ms": sorted(samples)[20], "p90_ms": sorted(samples)[36],
                "p99_ms": max(samples), "min_ms": min(samples), "per_second": 1e3 / centre,
                "tokens_per_second": 1e5 / centre, "warm_up_runs": 8, "stable": True,
                "energy_mj": None, "samples_ms": samples,
            }  # fmt: skip
        ratios = [
            {"subject": key, "over": "ort-cpu:base", "ratio": centre / 4.2,
             "interval": [centre / 4.2 - 0.02, centre / 4.2 + 0.03]}
            for key, centre in list(subjects.items())[1:]
        ]  # fmt: skip
        cells.append(
            {"kind": "forward", "batch": batch, "length": length, "past": 0, "rounds": 40,
             "times": times, "ratios": ratios}
        )  # fmt: skip
    startup = {"session_ms": 51.3, "first_run_ms": 8.7, "peak_bytes": 91_697_152,
               "imported_bytes": 76_800_000, "device_bytes": None}  # fmt: skip
    return {
        "format_version": 1, "tool": "lora-export 0.1.0", "date": "2026-11-25T10:33:11+00:00",
        "environment": {"cpu": {"model": "AMD EPYC", "count": 2, "governor": None}, "gpus": []},
        "settings": {"rounds": 40, "max_rounds": 80, "seed": 0, "threads": 0, "confidence": 0.95},
        "subjects": {
            key: {"graph": key.partition(":")[2], "mode": "merged", "runner": "ort-cpu",
                  "files": {}, "baseline": False, "startup": startup, "reason": None}
            for key in subjects
        },
        "cells": cells,
        "gate": {
            "max_ratio": 1.05, "verdict": "fail", "against": "base",
            "rows": [
                {"cell": "forward 1×32", "subject": "torch:support-intents", "over": "ort-cpu:base",
                 "ratio": 2.69, "interval": [2.6, 2.7], "verdict": "fail", "rounds": 40,
                 "reason": "the interval [2.600, 2.700] lies above the limit 1.05",
                 "rounds_needed": None},
            ],
        },
    }  # fmt: skip
