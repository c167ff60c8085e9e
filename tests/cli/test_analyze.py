"""``analyze`` as a user calls it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.running import call
from tests.helpers.handmade import save_adapter, save_checkpoint


@pytest.fixture
def places(tmp_path):
    return (
        save_checkpoint(tmp_path / "base"),
        save_adapter(tmp_path / "one"),
        save_adapter(tmp_path / "two"),
    )


def test_a_report(capsys, places) -> None:
    base, one, two = places
    done = call(capsys, "analyze", one, two, "--base", base, "--json", "--quiet")
    assert done.code == 0
    document = json.loads(done.out)
    row = document["modules"][0]
    assert len(row["singular_values"]) == row["rank"] == 2
    assert row["amplification"]["factor"] > 0
    assert np.shape(row["similarity"]["A"]) == (2, 2)
    text = call(capsys, "analyze", one, two, "--base", base, "--quiet").out
    assert "bert.encoder.layer.*.attention.self.query" in text
    assert "amplified" in text


def test_an_adapter_that_does_nothing_amplifies_nothing(capsys, tmp_path) -> None:
    base, idle = save_checkpoint(tmp_path / "base"), save_adapter(tmp_path / "idle")
    file = idle / "adapter_model.safetensors"
    save_file(
        {k: v if "lora_A" in k else np.zeros_like(v) for k, v in load_file(file).items()}, file
    )
    done = call(capsys, "analyze", idle, "--base", base, "--json", "--quiet")
    assert done.code == 0
    rows = json.loads(done.out)["modules"]
    assert {row["amplification"]["factor"] for row in rows} == {0.0}


def test_an_endless_amplification_is_null_in_json(capsys, tmp_path) -> None:
    base, one = save_checkpoint(tmp_path / "base"), save_adapter(tmp_path / "one")
    file = base / "model.safetensors"
    save_file({k: np.zeros_like(v) for k, v in load_file(file).items()}, file)
    done = call(capsys, "analyze", one, "--base", base, "--json", "--quiet")
    assert done.code == 0
    rows = json.loads(done.out)["modules"]
    assert {row["amplification"]["factor"] for row in rows} == {None}


def test_modules_of_one_adapter_only_are_named(capsys, places) -> None:
    _, one, two = places
    file = two / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if ".query." not in k}, file)
    for pair, key, lacking in (((one, two), "only_here", two), ((two, one), "only_there", two)):
        document = json.loads(call(capsys, "analyze", *pair, "--json", "--quiet").out)
        assert document[key]
        assert all(module.endswith(".query") for module in document[key])
        assert f"not in {lacking}: " in call(capsys, "analyze", *pair, "--quiet").out


def test_a_figure(capsys, places, tmp_path) -> None:
    _, one, two = places
    figure = tmp_path / "phi.svg"
    assert call(capsys, "analyze", one, two, "--figure", figure, "--quiet").code == 0
    root = ET.parse(figure).getroot()
    assert sum(each.tag.endswith("}title") for each in root.iter()) == 1 + 2 * 2 * 2


def test_a_smaller_adapter(capsys, places, tmp_path) -> None:
    _, one, _ = places
    done = call(capsys, "analyze", one, "--compress", "1", "--out", tmp_path / "small", "--json")
    assert done.code == 0
    assert {row["rank"] for row in json.loads(done.out)["modules"]} == {1}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "nothing to analyze"),
        (("{one}", "--compress", "half", "--out", "x"), 2, "neither a rank nor a share"),
        (("{one}", "--compress", "2"), 2, "nothing was saved\nName a new folder: --out one-small"),
        (("{one}", "--out", "x"), 2, "printed, not saved\nAdd --compress RANK"),
        (("{one}", "{two}", "--compress", "2"), 2, "takes one adapter and not a second adapter"),
        (("{one}", "--base", "{base}", "--compress", "2", "--out", "x"), 2, "and not --base"),
        (("{one}", "{two}", "--module", "q"), 2, "belongs to --figure"),
        (("{one}", "--figure", "x.svg"), 2, "compares two adapters"),
        (("{one}", "--target", "q"), 2, "belongs to --plan"),
        (("--plan", "{base}"), 2, "the modules to adapt"),
        (("{base}/nothing",), 3, "nothing"),
        (("{one}", "{two}", "--figure", "x.svg", "--module", "no"), 2, "not a module of both"),
    ],
)
def test_errors_say_what_to_do(capsys, places, arguments, code, says) -> None:
    base, one, two = places
    given = [each.format(base=base, one=one, two=two) for each in arguments]
    done = call(capsys, "analyze", *given, "--quiet")
    assert done.code == code
    assert says in done.err
