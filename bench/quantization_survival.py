"""The smallest adapter that survives four bits, and the verdicts of the gates."""

from __future__ import annotations

import sys

import _measure

CLAIM = "quantization_survival"
METHOD = (
    "The adapter of minilm-intents with a factor on its scale, int4 in blocks of 32, merged and "
    "swappable: gain and cosine of its effect on the logits of 36 random texts, in ONNX Runtime's "
    "default session, and the share of 800 held-out sentences whose prediction is another than "
    "the float model's. exact_cosine: the same with products that are not rounded."
)


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=1)
    with _measure.Session(CLAIM, options, peers=False) as session:
        found = session.answer([sys.executable, _measure.BENCH / "_adapter_factors.py"])
        lost = [
            row["accuracy"]["float"] - row["accuracy"]["quantized"]
            for row in found.values()
            if row["verdict"] != "fail"
        ]
        session.report(
            "What is left of an adapter at four bits",
            METHOD,
            {},
            [
                _measure.Target(
                    "accuracy lost, where no gate failed", "at most", 0.025, round(max(lost), 4),
                ),
                _measure.Target(
                    "predictions that changed, as trained and merged", "at most", 0.02,
                    round(found["merged, 1"]["changed_share"], 4),
                ),
            ],
            found=found,
        )  # fmt: skip


if __name__ == "__main__":
    main()
