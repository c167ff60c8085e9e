"""Scales and combinations from the command line to a verified graph, PEFT as the oracle."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_export.commands.recipe import make_combine, make_recipe, make_specs
from lora_export.core.errors import UsageError
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
        (("--combine", "sum"), "unknown method 'sum'"),
        (("--combine", "ties"), "needs a density"),
        (("--combine-rank", "3"), "--combine is missing"),
        (("--combine", "cat", "--combine-weights", "1,x"), "'x' is not a number"),
        (("--combine", "cat", "--combine-weights", "1"), "cannot be combined with the weights"),
        (("--combine", "cat", "--combine-name", "base"), "reserved"),
        (("--combine", "ties", "--combine-density", "1", "--combine-sign", "x"), "--combine-sign"),
        (("--scale", "three=2"), "the unknown adapter"),
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


def test_the_head_of_one_of_two_adapters_is_taken_and_found_again(
    tiny: TinyModels, tmp_path, capsys
) -> None:
    base = tiny.base("bert")
    one = tiny.adapter(base, seed=3, strength=0.3)
    two = tiny.adapter(base, seed=4, strength=0.3, labels_count=2)
    out = tmp_path / "out"
    given = ["--adapter", f"one={one}", "--adapter", f"two={two}", "--combine", "cat"]
    refused = call(capsys, "merge-and-build", "--base", base, *given, "--out", out)
    assert refused.code == 3
    assert "--head-from one" in refused.message
    done = call(capsys, "merge-and-build", "--base", base, *given, "--head-from", "two",
                "--no-latency", "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    record = manifest_of(out)["adapters"]["one-two"]
    assert record["combined"]["head_from"] == "two"
    assert record["labels"] == ["LABEL_0", "LABEL_1"]
    assert call(capsys, "verify", out, "--base", base).code == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = [without_head(each, tmp_path / each.name) for each in (one, two)]
        model = peft_model(base, bare[0], TASK, labels_count=2)
        model.load_adapter(str(bare[1]), "two")
        model.add_weighted_adapter(["default", "two"], [1.0, 1.0], "both", combination_type="cat")
        model.set_adapter("both")
    head = load_file(two / "adapter_model.safetensors")
    weights = {name.partition("classifier.")[2]: value for name, value in head.items()
               if "classifier." in name}  # fmt: skip
    model.base_model.model.classifier = classifier_of(weights)
    expected = run_torch(model.eval(), FEEDS)
    assert error(run_graph(out, "one-two", FEEDS), expected) < 1e-5


def without_head(adapter: Path, folder: Path) -> Path:
    """Copy an adapter without the head that it brings."""
    shutil.copytree(adapter, folder)
    held = load_file(folder / "adapter_model.safetensors")
    kept = {name: value for name, value in held.items() if "classifier" not in name}
    save_file(kept, folder / "adapter_model.safetensors", {"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"task_type": None, "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def classifier_of(weights: dict[str, Any]) -> Any:
    """Return a linear layer with a head's values."""
    import torch

    layer = torch.nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return layer
