"""Bundles of quantized exports: packed for targets of opset 20, and verified where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_export.bundle.device_bundle import bundle_export
from lora_export.core.errors import UnsupportedError
from lora_export.engines.engine_options import EngineOptions
from lora_export.ondevice.bundle.main import main
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.bundles import read_report, run_bundle, unpacked
from tests.helpers.double import install_double
from tests.helpers.slow import but_the_first

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.models import TinyModels

CLASSES = "text-classification"
SETTINGS = (("swappable", "int4"), ("merged", "int4"), ("batched", "int4"), ("merged", "int8"))


def exported(tiny: TinyModels, export_dir: Path, mode: str, scheme: str, **settings: Any) -> Path:
    base = tiny.base("bert", CLASSES)
    adapters = {"one": tiny.adapter(base, strength=0.3)}
    build(base, adapters, export_dir, mode=mode, quantize=scheme, **settings)
    return export_dir


@pytest.mark.parametrize(("mode", "scheme"), but_the_first(SETTINGS))
def test_a_bundle_verifies_in_both_runtimes(
    tiny: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, scheme: str
) -> None:
    export = exported(tiny, tmp_path / "out", mode, scheme, verify={"enabled": True})
    export_dir = unpacked(export, tmp_path)
    done = run_bundle(export_dir, "verify")
    assert done.returncode == 0, done.stderr
    install_double(monkeypatch)
    assert main(export_dir, ["verify"]) == 0
    for runtime in ("onnxruntime", "tensorrt-double"):
        rows = read_report(export_dir, runtime)["parity"]["graphs"]
        assert {name: row["verdict"] for name, row in rows.items()} == {
            "base": "pass",
            "one": "pass",
        }
        assert rows["one"]["effect"] > 0.01


def test_what_needs_a_newer_jetpack_is_said(
    tiny: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = exported(tiny, tmp_path / "out", "merged", "int4")
    for target, expected in (("jetson-orin", True), ("l4", False)):
        result = call(
            capsys, "bundle", str(export), "--target", target, "-o", str(tmp_path / f"{target}.tar")
        )
        assert result.code == 0, result.err
        assert ("opset 21, and so JetPack 7.2 or newer" in result.err) == expected


def test_integers_are_not_refitted(tiny: TinyModels, tmp_path: Path) -> None:
    export = exported(tiny, tmp_path / "out", "merged", "int8")
    with pytest.raises(UnsupportedError, match="a refit cannot change their integers") as caught:
        bundle_export(export, "l4", tmp_path / "b.tar", options=EngineOptions(refit=True))
    assert "--quantize" in str(caught.value.hint)
    assert not (tmp_path / "b.tar").exists()
