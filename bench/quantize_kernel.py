"""Quantization in blocks: weights a second, and what each method does to the trained recipes."""

from __future__ import annotations

import statistics
import sys

import _measure

CLAIM = "quantize_kernel"
METHOD = (
    "Speed: 8 million random weights in blocks of 32 with float16 scales, at once and as two "
    "halves in two threads, in the compiled module and in NumPy; millions of weights a second. "
    "Quality: the linear layers of gpt2-python's base and of MiniLM are replaced by their "
    "quantized values, in torch; embeddings and heads stay. weights: relative error, Frobenius. "
    "divergence: KL of the next token, nats, over modules of the standard library that the model "
    "was not trained on. moved: squared distance of unit embeddings of held-out sentences."
)
SCHEME = "int4, block 32"


def main() -> None:
    options = _measure.arguments(CLAIM, __doc__, repeat=5)
    script = _measure.BENCH / "_quantize_methods.py"
    with _measure.Session(CLAIM, options, peers=False) as session:
        rates = session.answer([sys.executable, script, "speed", str(session.repeat)])
        quality = session.answer([sys.executable, script, "quality"])
        fastest = rates.get("compiled, int4, search", rates["NumPy, int4, search"])
        session.report(
            "Weights quantized in blocks: speed and loss of each method",
            METHOD,
            {
                name: {column: _measure.summarise(values) for column, values in row.items()}
                for name, row in rates.items()
            },
            [
                _measure.Target(
                    "millions of weights a second, int4 searched, two threads", "at least", 60.0,
                    round(statistics.median(fastest["2 threads"]), 1),
                    (round(min(fastest["2 threads"]), 1), round(max(fastest["2 threads"]), 1)),
                ),
                over_nearest(quality, "gpt2-python", "divergence"),
                over_nearest(quality, "minilm-intents", "moved"),
            ],
            quality=quality,
        )  # fmt: skip


def over_nearest(quality: dict[str, dict[str, dict[str, float]]], recipe: str,
                 figure: str) -> _measure.Target:  # fmt: skip
    rows = quality[recipe]
    search, nearest = (rows[f"{SCHEME}, {method}"][figure] for method in ("search", "nearest"))
    return _measure.Target(
        f"{recipe}: {figure} by the searched scale over nearest's", "at most", 0.85,
        round(search / nearest, 4),
    )  # fmt: skip


if __name__ == "__main__":
    main()
