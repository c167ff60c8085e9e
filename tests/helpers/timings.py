"""Timings to judge: recorded on a loaded machine, and simulated ones with what machines do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

__all__ = ["LOADS", "NOISES", "recorded", "simulated"]

_FILE: Final = Path(__file__).parents[1] / "data" / "timings.json"
_BLOCK: Final = 50

LOADS: Final = ("shared", "steady", "bursts")
NOISES: Final = ("white", "spikes", "drift", "bursts", "correlated")


def recorded(load: str, rounds: int, *, seed: int, ratio: float = 1.0) -> np.ndarray:
    """Return times ``[2, rounds]`` of one graph in two sessions, the second `ratio` times as slow.

    Blocks of fifty neighbouring rounds are drawn, so that what lasts longer than a round is kept;
    which of the sessions is the first is drawn for each block, so that the true ratio is `ratio`.
    """
    table = np.array(json.loads(_FILE.read_text("utf-8"))["times_10us"][load]) / 100
    random = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-rounds // _BLOCK)):
        start = int(random.integers(0, table.shape[1] - _BLOCK))
        block = table[:, start : start + _BLOCK]
        blocks.append(block[::-1] if random.random() < 0.5 else block)
    times = np.concatenate(blocks, axis=1)[:, :rounds]
    return times * np.array([[1.0], [ratio]])


def simulated(noise: str, rounds: int, *, seed: int, ratio: float = 1.0) -> np.ndarray:
    """Return times ``[2, rounds]`` around 5 ms with one kind of noise.

    ``white``: independent, 5 %. ``spikes``: one run in twelve takes up to several times as long.
    ``drift``: both become three times as slow. ``bursts``: half of the time, in stretches of ten
    rounds on average, a neighbour takes up to half of the machine. ``correlated``: 10 %, each run's
    own, an autoregression whose neighbours correlate by 0.5.
    """
    random = np.random.default_rng(seed)
    logs = 0.05 * random.standard_normal((2, rounds))
    if noise == "spikes":
        logs += (random.random((2, rounds)) < 1 / 12) * random.exponential(1.0, (2, rounds))
    elif noise == "drift":
        logs += np.linspace(0, np.log(3), rounds)
    elif noise == "bursts":
        busy = np.cumsum(random.random(rounds) < 0.1) % 2
        logs += busy * 0.3 * np.abs(random.standard_normal((2, rounds)))
    elif noise == "correlated":
        shocks = 0.1 * np.sqrt(1 - 0.5**2) * random.standard_normal((2, rounds))
        logs = np.zeros((2, rounds))
        for at in range(rounds):
            logs[:, at] = 0.5 * logs[:, at - 1] + shocks[:, at]
    return 5.0 * np.exp(logs) * np.array([[1.0], [ratio]])
