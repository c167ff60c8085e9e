"""Scales and combinations from the command line to a verified graph, PEFT as the oracle."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.base.errors import UsageError
from lora_export.recipe import make_combine, make_recipe, make_specs
from tests.cli.exports import assert_intact, manifest_of, peft_model, report, run_graph, run_torch
from tests.cli.running import call, command
from tests.helpers.models import load_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

pytestmark = pytest.mark.slow

TASK = "text-classification"
FEEDS = {
    "input_ids": np.arange(3, 21).reshape(2, 9),
    "attention_mask": np.ones((2, 9), np.int64),
    "token_type_ids": np.zeros((2, 9), np.int64),
}
HEADLESS = {"task": "fill-mask", "labels_count": None}


@pytest.fixture(scope="module")
def base(tiny: TinyModels) -> Path:
    return tiny.base("bert", "fill-mask")


@pytest.fixture(scope="module")
def pair(tiny: TinyModels, base: Path) -> tuple[Path, Path]:
    return (
        tiny.adapter(base, **HEADLESS, seed=1, strength=0.3),
        tiny.adapter(base, **HEADLESS, seed=2, r=4, alpha=2, strength=0.3,
                     target_modules=["query", "key"]),
    )  # fmt: skip


def in_peft(base: Path, adapters: tuple[Path, ...], weights: list[float], method: str, **more: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft_model(base, adapters[0], "fill-mask")
        for index, folder in enumerate(adapters[1:]):
            model.load_adapter(str(folder), f"a{index}")
        names = list(model.peft_config)
        model.add_weighted_adapter(names, weights, "c", combination_type=method, **more)
        model.set_adapter("c")
    return run_torch(model.eval(), FEEDS)


def error(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_a_combination_is_built_verified_and_verified_again(base, pair, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    done = call(
        capsys, "merge-and-build", "--base", base, "--adapter", f"one={pair[0]}", "--adapter",
        f"two={pair[1]}", "--combine", "ties", "--combine-density", 0.5, "--combine-weights",
        "1.5,-0.5", "--no-latency", "--out", out, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert_intact(out)
    assert report(out, "parity")["graphs"]["one-two"]["verdict"] == "pass"
    expected = in_peft(base, pair, [1.5, -0.5], "ties", density=0.5)
    assert error(run_graph(out, "one-two", FEEDS), expected) < 1e-5
    record = manifest_of(out)["adapters"]["one-two"]
    assert record["format"] == "combined"
    combined = record["combined"]
    assert (combined["method"], combined["density"]) == ("ties", 0.5)
    assert [(p["name"], p["weight"]) for p in combined["parts"]] == [("one", 1.5), ("two", -0.5)]
    assert (out / combined["parts"][0]["source"]).resolve() == pair[0].resolve()
    again = call(capsys, "verify", out, "--base", base, "--json")
    assert again.code == 0, again.err
    assert again.document["graphs"]["one-two"]["verification"] == "pass"


def test_add_combines_without_torch_and_scales(base, pair, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert call(capsys, "export", "--base", base, "--out", out).code == 0
    done = command(
        "add", out, "--adapter", f"one={pair[0]}", "--adapter", f"two={pair[1]}", "--scale",
        "one=0.5", "--combine", "cat", "--combine-name", "both", without=("torch", "peft"),
    )  # fmt: skip
    assert done.code == 0, done.err
    expected = in_peft(base, pair, [0.5, 1.0], "cat")
    assert error(run_graph(out, "both", FEEDS), expected) < 1e-5
    parts = manifest_of(out)["adapters"]["both"]["combined"]["parts"]
    assert [part["scale"] for part in parts] == [0.5, 1.0]
    alone = call(capsys, "add", out, "--adapter", f"weak={pair[0]}", "--scale", "0.25")
    assert alone.code == 0, alone.err
    assert manifest_of(out)["adapters"]["weak"]["scale"] == 0.25
    again = call(capsys, "verify", out, "--base", base, "--json")
    assert again.code == 0, again.err
    verdicts = {k: v["verification"] for k, v in again.document["graphs"].items()}
    assert verdicts == {"base": "pass", "both": "pass", "weak": "pass"}


def test_a_scale_is_pefts(tiny: TinyModels, tmp_path, capsys) -> None:
    """The head stays; the updates are multiplied."""
    base = tiny.base("bert", TASK)
    adapter = tiny.adapter(base, seed=9, strength=0.3)
    out = tmp_path / "out"
    done = call(capsys, "merge-and-build", "--base", base, "--adapter", f"a={adapter}", "--scale",
                "-1.5", "--no-latency", "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    model = peft_model(base, adapter, TASK)
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", -1.5)
    assert error(run_graph(out, "a", FEEDS), run_torch(model, FEEDS)) < 1e-5
    unscaled = run_torch(load_tiny(base, TASK), FEEDS)
    assert error(run_graph(out, "a", FEEDS), unscaled) > 1e-2


def test_different_heads_are_refused_and_one_may_be_dropped(tiny, tmp_path, capsys) -> None:
    base = tiny.base("bert", TASK)
    one, two = (tiny.adapter(base, seed=seed) for seed in (1, 2))
    flags = ("--base", base, "--adapter", f"one={one}", "--adapter", f"two={two}", "--combine",
             "svd", "--out", tmp_path / "out")  # fmt: skip
    refused = call(capsys, "export", *flags)
    assert refused.code == 3
    assert "both carry 'classifier.bias'" in refused.message
    done = call(capsys, "export", *flags, "--drop", "classifier.*")
    assert done.code == 0, done.err
    parts = manifest_of(tmp_path / "out")["adapters"]["one-two"]["combined"]["parts"]
    assert [part["dropped"] for part in parts] == [["classifier.*"]] * 2


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--combine", "sum"), "no way 'sum'"),
        (("--combine", "ties"), "needs a density"),
        (("--combine-rank", "3"), "lacks the key 'combine.method'"),
        (("--combine", "cat", "--combine-weights", "1,x"), "'x' is not a number"),
        (("--combine", "cat", "--combine-weights", "1"), "cannot be combined with the weights"),
        (("--combine", "cat", "--combine-name", "base"), "reserved"),
        (("--combine", "ties", "--combine-density", "1", "--combine-sign", "x"), "sign_method"),
        (("--scale", "three=2"), "names no adapter"),
        (("--scale", "inf"), "scale"),
    ],
)
def test_wrong_flags_are_usage_errors(flags, text, *, base, pair, tmp_path, capsys) -> None:
    done = call(capsys, "export", "--base", base, "--adapter", f"one={pair[0]}", "--adapter",
                f"two={pair[1]}", "--out", tmp_path / "out", *flags)  # fmt: skip
    assert done.code == 2, done.err
    assert text in done.err
    assert not (tmp_path / "out").exists()


def test_the_recipe_says_the_same(tmp_path) -> None:
    table = {
        "base": "b",
        "output": "o",
        "adapters": [{"source": "x", "scale": 0.5}, {"source": "y"}],
        "combine": {"method": "ties", "density": 0.2, "weights": [1, 2], "name": "c", "seed": 3},
    }
    recipe = make_recipe(table, folder=tmp_path)
    assert recipe.adapters[0].scale == 0.5
    assert recipe.combine is not None
    assert recipe.combine == make_combine(table["combine"])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"unknown key 'combine.wieghts'") as caught:
        make_recipe({**table, "combine": {"method": "cat", "wieghts": []}}, folder=tmp_path)
    assert "'weights'" in str(caught.value.hint)
    assert [s.scale for s in make_specs([{"source": "p/x"}, {"source": "y"}], {"": 2, "x": 3})] == [
        3,
        2,
    ]
