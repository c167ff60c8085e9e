"""Engines that a bundle's program builds on a device, with the double of TensorRT."""

from __future__ import annotations

import pytest

from lora_export.engines.engine_options import EngineOptions
from lora_export.ondevice.bundle.bundle_index import read_index
from lora_export.ondevice.bundle.main import main
from lora_export.ondevice.device_errors import LatencyError
from tests.helpers.builds import build
from tests.helpers.bundles import copied, read_report, unpacked
from tests.helpers.double import install_double


@pytest.mark.parametrize("kind", ["merged", "swappable", "decoder", "static", "two"])
def test_engines_are_built_once_verified_and_measured(bundles, tmp_path, monkeypatch, capsys, kind):
    """End to end with the double of TensorRT, which says what it is wherever it appears."""
    bundle_dir = copied(bundles(kind), tmp_path / "bundle")
    install_double(monkeypatch)
    assert main(bundle_dir, ["--rounds", "10"]) == 0
    printed = capsys.readouterr().out
    assert "the library 'tensorrt-double'" in printed.splitlines()[0]
    assert "TensorRT did not run" in printed.splitlines()[0]
    assert not (bundle_dir / "report.tensorrt.json").exists()
    report = read_report(bundle_dir, "tensorrt-double")
    assert report["runtime"]["tensorrt_ran"] is False
    rows = report["parity"]["graphs"]
    assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(
        ("base", "one", "two"), "pass"
    )
    latency = report["latency"]["graphs"].values()
    assert {row["verdict"] for row in latency} == {"unverified"}
    assert {row["library"] for row in report["engines"].values()} == {"tensorrt-double"}
    assert not any(row["kept"] for row in report["engines"].values())
    assert main(bundle_dir, ["verify"]) == 0
    assert all(
        row["kept"] for row in read_report(bundle_dir, "tensorrt-double")["engines"].values()
    )


def test_a_known_library_is_named_and_gates_the_latency(bundles, tmp_path, monkeypatch, capsys):
    bundle_dir = copied(bundles("merged"), tmp_path / "bundle")
    monkeypatch.setattr(install_double(monkeypatch), "__name__", "tensorrt")
    assert main(bundle_dir, ["--rounds", "10", "--only", "one"]) in {0, LatencyError.exit_code}
    assert capsys.readouterr().out.splitlines()[0].endswith("with TensorRT 10.3.0 on Orin (double)")
    report = read_report(bundle_dir, "tensorrt")
    assert report["runtime"]["tensorrt_ran"] is True
    assert {row["verdict"] for row in report["latency"]["graphs"].values()} != {"unverified"}
    assert report["engines"]["one"]["library"] == "tensorrt"


def test_a_plan_of_another_library_is_built_again(bundles, tmp_path, monkeypatch, capsys):
    bundle_dir = copied(bundles("merged"), tmp_path / "bundle")
    module = install_double(monkeypatch)
    assert main(bundle_dir, ["build", "--only", "one"]) == 0
    monkeypatch.setattr(module, "__name__", "tensorrt")
    assert main(bundle_dir, ["build", "--only", "one"]) == 0
    said = capsys.readouterr().err
    assert "was built by the library 'tensorrt-double', this is TensorRT" in said
    assert read_report(bundle_dir, "tensorrt")["engines"]["one"]["kept"] is False


def test_a_plan_that_was_cut_short_is_built_again(bundles, tmp_path, monkeypatch, capsys):
    bundle_dir = copied(bundles("merged"), tmp_path / "bundle")
    install_double(monkeypatch)
    assert main(bundle_dir, ["build", "--only", "one"]) == 0
    (plan,) = (bundle_dir / "engines").glob("one.*.plan")
    plan.write_bytes(plan.read_bytes()[:-9])
    capsys.readouterr()
    assert main(bundle_dir, ["verify", "--only", "one"]) == 0
    assert "building one again" in capsys.readouterr().err
    assert read_report(bundle_dir, "tensorrt-double")["engines"]["one"]["kept"] is False


def test_adapters_are_put_into_the_engine_of_the_base(exports, tmp_path, monkeypatch):
    bundle_dir = unpacked(exports("merged"), tmp_path, options=_refit())
    install_double(monkeypatch)
    assert main(bundle_dir, ["--rounds", "10"]) == 0
    report = read_report(bundle_dir, "tensorrt-double")
    assert list(report["engines"]) == ["base"]
    assert {row["verdict"] for row in report["parity"]["graphs"].values()} == {"pass"}
    assert len(list((bundle_dir / "engines").glob("*.plan"))) == 1


def _refit():
    return EngineOptions(refit=True)


def test_a_wider_head_gets_an_engine_of_its_own_beside_the_refitted_one(
    tiny, tmp_path, monkeypatch, capsys
):
    """A refit changes no shape: what cannot be put into the base's engine is found when packing."""
    base = tiny.base("bert", "text-classification")
    adapters = {
        "one": tiny.adapter(base, seed=1, strength=0.3),
        "two": tiny.adapter(base, seed=2, strength=0.3, labels_count=5),
    }
    export = tmp_path / "out"
    build(base, adapters, export, task="text-classification", verify={"enabled": True})
    bundle_dir = unpacked(export, tmp_path, options=_refit())
    graphs = read_index(bundle_dir).contents.graphs
    assert graphs["one"].engine is None
    assert graphs["two"].engine is not None
    install_double(monkeypatch)
    assert main(bundle_dir, ["verify"]) == 0, capsys.readouterr().err
    report = read_report(bundle_dir, "tensorrt-double")
    assert set(report["engines"]) == {"base", "two"}
    assert {row["verdict"] for row in report["parity"]["graphs"].values()} == {"pass"}
