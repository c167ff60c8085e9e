"""``method: gptq``: builds, ``add`` and ``quantize`` that run the model on sentences."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lora_export.commands.add import add
from lora_export.commands.quantize import quantize
from lora_export.commands.recipe_sections import QuantizeSpec
from lora_export.core.adapter_spec import AdapterSpec
from lora_export.core.errors import InputError, UnsupportedError
from lora_export.core.manifest import read_manifest
from lora_export.verification import product_moments
from lora_export.verification.product_moments import measure_moments
from tests.cli.running import call
from tests.helpers.builds import build, file_hashes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES, TEXT = "text-classification", "text-generation"
GPTQ = {"weights": "int4", "method": "gptq"}


class Quiet:
    """A progress that counts how often the inputs are measured."""

    def __init__(self) -> None:
        self.passes = 0

    def start(self, what: str, total: int = 0) -> None:
        self.passes += what.startswith("measuring")

    def advance(self, count: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.fixture(scope="module")
def base(tiny: TinyModels) -> Path:
    return tiny.base("bert", CLASSES, tokenizer=True)


def test_a_build_is_verified_and_add_gives_the_same_adapter(
    tiny: TinyModels, base: Path, tmp_path: Path
) -> None:
    one, two = (tiny.adapter(base, seed=seed, strength=0.3) for seed in (5, 6))
    outcome = build(
        base, {"one": one, "two": two}, tmp_path / "both", quantize=GPTQ, verify={"enabled": True}
    )
    assert outcome.exit_code(strict=True) == 0
    build(base, {"one": one}, tmp_path / "out", quantize=GPTQ)
    add(tmp_path / "out", [AdapterSpec(name="two", source=str(two))], base=base)
    ours, theirs = file_hashes(tmp_path / "out"), file_hashes(tmp_path / "both")
    for file in ("weights/base.safetensors", "weights/one.safetensors", "weights/two.safetensors"):
        assert ours[file] == theirs[file], file
    assert set(ours) == {each for each in theirs if not each.startswith(("golden", "reports"))}


@pytest.mark.slow
def test_a_copy_is_rounded_for_the_inputs_of_the_float_graph(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny.base("llama", TEXT, tokenizer=True)
    build(base, {}, tmp_path / "float", task=TEXT)
    command = ("quantize", tmp_path / "float", "--weights", "int4")
    for method in ("search", "gptq"):
        done = call(capsys, *command, "--method", method, "-o", tmp_path / method)
        assert done.code == 0, done.err
    found, plain = (file_hashes(tmp_path / each)["weights/base.safetensors"] for each in
                    ("gptq", "search"))  # fmt: skip
    assert found != plain
    record = read_manifest(tmp_path / "gptq").base.quantization
    assert record is not None
    assert record.method == "gptq"


def test_moments_are_those_of_the_model_s_own_inputs_in_as_many_passes_as_memory_allows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(base, {}, tmp_path / "out", task="feature-extraction")
    manifest = read_manifest(tmp_path / "out")
    names = sorted(
        use.initializer
        for uses in manifest.parameters.values()
        for use in uses
        if use.module == "Linear" and use.initializer.endswith("weight")
    )
    found: dict[int, dict[str, Any]] = {}
    passes = {}
    for limit in (1 << 30, 1 << 14):
        monkeypatch.setattr(product_moments, "_LIMIT_BYTES", limit)
        quiet = Quiet()
        moments_of = measure_moments(tmp_path / "out", manifest, names, progress=quiet)
        found[limit] = {name: moments_of(name) for name in names}
        passes[limit] = quiet.passes
        assert moments_of("absent") is None
    assert passes[1 << 30] == 1 < passes[1 << 14]
    for name in names:
        once, often = (each[name] for each in found.values())
        assert once is not None
        np.testing.assert_allclose(once, often, rtol=1e-5)
        np.testing.assert_allclose(once, once.T, rtol=1e-4)
        assert np.linalg.eigvalsh(once.astype(np.float64)).min() > -1e-3 * np.trace(once)


def test_what_takes_no_text_is_refused_with_another_method(
    tiny: TinyModels, tmp_path: Path
) -> None:
    images = tiny.base("vit", "image-classification")
    with pytest.raises(UnsupportedError, match="it takes pixel_values") as caught:
        build(images, {}, tmp_path / "out", task="image-classification", quantize=GPTQ)
    assert "such as search" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_base_without_a_tokenizer_is_named(tiny: TinyModels, tmp_path: Path) -> None:
    base = tiny.base("bert", CLASSES)
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        build(base, {}, tmp_path / "out", quantize=GPTQ)
    build(base, {}, tmp_path / "float")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        quantize(tmp_path / "float", tmp_path / "out", QuantizeSpec(weights="int4", method="gptq"))
    assert not (tmp_path / "out").exists()
