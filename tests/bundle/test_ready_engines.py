"""Bundles of engines that are built before they are packed: TensorRT for RTX.

The double stands in the library's place; it runs no TensorRT for RTX.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_export.bundle.device_bundle import bundle_export
from lora_export.bundle.packing import unpack, verify_bundle
from lora_export.commands import engines
from lora_export.core.errors import UsageError
from lora_export.core.targets import RTX
from lora_export.engines.engine_options import EngineOptions
from lora_export.ondevice.bundle.main import main
from lora_export.ondevice.device_errors import DeviceError, LoraExportError
from lora_export.ondevice.trt.libraries import TENSORRT_RTX
from tests.cli.running import call
from tests.helpers.builds import build
from tests.helpers.bundles import copied, read_report
from tests.helpers.double import RTX_VERSION, install_double
from tests.helpers.windows import LIKE_WINDOWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.models import TinyModels

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONS = EngineOptions(library=TENSORRT_RTX)
NAMES = {"base", "one", "two"}
GRAPHS = {"swappable": ["swappable"], "batched": ["batched"]}


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> Any:
    return install_double(monkeypatch, RTX_VERSION, library="tensorrt_rtx")


@pytest.fixture(scope="module")
def ready(exports: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: kind → an export of it with its engines, and its bundle, unpacked."""
    made: dict[str, Path] = {}

    def bundle(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(f"ready-{kind}")
            export_dir = shutil.copytree(exports(kind), folder / "export")
            with pytest.MonkeyPatch.context() as patch:
                install_double(patch, RTX_VERSION, library="tensorrt_rtx")
                engines.build(
                    export_dir, RTX, graphs=GRAPHS.get(kind, sorted(NAMES)), options=OPTIONS
                )
            packed = bundle_export(export_dir, RTX, folder / "bundle.tar", name="ready")
            unpack(packed.path, folder / "bundle")
            made[kind] = folder
        return made[kind]

    return bundle


@pytest.mark.parametrize("kind", ["merged", "swappable", "batched", "decoder", "static", "two"])
def test_engines_are_compiled_verified_and_measured(
    rtx: Any, ready: Callable[[str], Path], tmp_path: Path, kind: str, capsys: Any
) -> None:
    bundle_dir = copied(ready(kind) / "bundle", tmp_path / "bundle")
    assert main(bundle_dir, ["--rounds", "10", "--max-ratio", "1000"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith("TensorRT for RTX 1.7.1.116 on RTX 4090 (double)")
    assert "compiled in" in printed
    report = read_report(bundle_dir, TENSORRT_RTX)
    rows = report["parity"]["graphs"]
    assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(NAMES, "pass")
    measured = "unverified" if kind == "two" else "pass"
    assert {row["verdict"] for row in report["latency"]["graphs"].values()} == {measured}
    assert not any(row["kept"] for row in report["engines"].values())
    assert all(row["compile_seconds"] > 0 for row in report["engines"].values())
    assert len(list((bundle_dir / "engines").glob("*.cache"))) == len(report["engines"])
    assert rtx.builds == 0
    count = rtx.compiled
    assert main(bundle_dir, ["verify"]) == 0
    assert rtx.compiled == count
    assert all(row["kept"] for row in read_report(bundle_dir, TENSORRT_RTX)["engines"].values())
    verify_bundle(bundle_dir)


def test_neither_graphs_nor_weights_nor_nvidias_files_go_along(
    ready: Callable[[str], Path],
) -> None:
    for kind, packs in (("merged", False), ("swappable", True)):
        index = verify_bundle(ready(kind) / "bundle.tar")
        names = set(index.files)
        suffixes = {Path(name).suffix for name in names}
        assert suffixes <= {".json", ".npz", ".plan", ".py", ".safetensors", ".txt", ""}
        assert not any(name.startswith(("weights/", "reports/")) for name in names)
        assert any(name.startswith("adapters/") for name in names) is packs
        assert not any("tensorrt_rtx" in name or "nv" in Path(name).stem for name in names)
        assert {"run.py", "golden/one.npz", "latency.npz", "hf/config.json"} <= names


def test_an_older_version_is_told_that_it_cannot_read_it(
    ready: Callable[[str], Path], bundles: Any
) -> None:
    versions = [
        json.loads((folder / "bundle.json").read_text())["format_version"]
        for folder in (ready("merged") / "bundle", bundles("merged"))
    ]
    assert versions == [3, 2]


def test_a_plan_that_was_read_on_another_machine_is_not_in_the_way(
    rtx: Any, ready: Callable[[str], Path], tmp_path: Path
) -> None:
    """The kernels of an export are not packed: they are of the machine that compiled them."""
    export_dir = copied(ready("merged") / "export", tmp_path / "export")
    for plan in (export_dir / "engines").glob("*.plan"):
        plan.with_suffix(".rtx-4090.cache").write_bytes(b"kernels")
    first = bundle_export(export_dir, RTX, tmp_path / "one.tar", name="ready")
    assert first.path.read_bytes() == (ready("merged") / "bundle.tar").read_bytes()
    assert rtx.compiled == 0


def test_missing_engines_are_named_with_the_command_that_builds_them(
    rtx: Any, exports: Any, tmp_path: Path, capsys: Any
) -> None:
    export_dir = copied(exports("merged"), tmp_path / "ex port")
    engines.build(export_dir, RTX, graphs=["one"], options=OPTIONS)
    result = call(capsys, "bundle", export_dir, "--target", "rtx", "-o", tmp_path / "a.tar")
    assert result.code == 2
    assert "takes engines of 'base', 'two', which are not built yet" in result.message
    command = shlex.split(result.message.splitlines()[-1].partition("machine: ")[2])
    assert command[:2] == ["lora-export", "build"]
    assert call(capsys, *command[1:]).code == 0
    done = call(capsys, "bundle", export_dir, "--target", "rtx", "-o", tmp_path / "a.tar")
    assert done.code == 0
    assert rtx.builds == 3
    assert not (tmp_path / "b.tar").exists()


def test_a_family_of_gpus_has_its_own_engines(rtx: Any, exports: Any, tmp_path: Path) -> None:
    export_dir = copied(exports("merged"), tmp_path / "export")
    with pytest.raises(UsageError, match="for 'rtx-ada' takes engines") as caught:
        bundle_export(export_dir, "rtx-ada", tmp_path / "a.tar", options=OPTIONS)
    assert "--target rtx-ada --builder tensorrt-rtx --graph base" in (caught.value.hint or "")
    engines.build(export_dir, "rtx-ada", graphs=["base", "one"], options=OPTIONS)
    bundle_export(export_dir, "rtx-ada", tmp_path / "a.tar", options=OPTIONS, adapters=["one"])
    unpack(tmp_path / "a.tar", tmp_path / "bundle")
    assert main(tmp_path / "bundle", ["verify"]) == 0
    rtx.cudart.capability = (12, 0)
    assert main(tmp_path / "bundle", ["verify"]) == 3


def test_a_base_without_a_head_needs_no_engine(rtx: Any, tiny: TinyModels, tmp_path: Path) -> None:
    export_dir = tmp_path / "export"
    base = tiny.base("bert", "feature-extraction")
    adapter = tiny.adapter(base, seed=1, strength=0.3)
    build(base, {"one": adapter}, export_dir, task="text-classification", verify={"enabled": True})
    engines.build(export_dir, RTX, options=OPTIONS)
    unpack(bundle_export(export_dir, RTX, tmp_path / "a.tar").path, tmp_path / "bundle")
    assert main(tmp_path / "bundle", []) == 0
    report = read_report(tmp_path / "bundle", TENSORRT_RTX)
    assert list(report["engines"]) == ["one"]
    rows = report["parity"]["graphs"]
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "base": "unverified",
        "one": "pass",
    }
    assert report["latency"]["graphs"]["one"]["reason"].startswith("the base has no engine")
    assert rtx.compiled


def test_engines_of_other_files_are_refused(
    rtx: Any, ready: Callable[[str], Path], tmp_path: Path
) -> None:
    export_dir = copied(ready("merged") / "export", tmp_path / "export")
    manifest = json.loads((export_dir / "lora_export.json").read_text())
    manifest["files"]["weights/one.safetensors"] = "0" * 64
    (export_dir / "lora_export.json").write_text(json.dumps(manifest))
    with pytest.raises(DeviceError, match=r"from another 'weights/one\.safetensors'"):
        bundle_export(export_dir, RTX, tmp_path / "a.tar")
    assert not (tmp_path / "a.tar").exists()
    assert rtx.compiled == 0


@pytest.mark.parametrize("options", [{"refit": True}, {"profiles": [{"batch": (1, 1, 1)}]}])
def test_options_of_a_build_on_the_device_are_refused(
    ready: Callable[[str], Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="is for engines that are built on the device"):
        bundle_export(
            ready("merged") / "export",
            RTX,
            tmp_path / "a.tar",
            options=EngineOptions(library=TENSORRT_RTX, **options),
        )


@pytest.mark.parametrize(
    "case",
    [
        ("release", [], 3, "built by TensorRT for RTX 1.7.1.116, this is 1.8.0.1"),
        ("capability", [], 3, "was built for compute capability 8.0, 8.6, 8.9, 12.0 and later"),
        ("invalid", [], 3, "cannot run the plan here: it was not built for the compute"),
        ("gpu", [], 7, "finds no CUDA device"),
        ("library", [], 7, "pip install 'tensorrt-rtx-cu12>=1.7,<2'"),
        ("record", [], 3, "is not the packed file"),
        ("", ["--runtime", "onnxruntime"], 4, "has no files that 'onnxruntime' runs"),
        ("", ["--runtime", "tensorrt"], 4, "has no files that 'tensorrt' runs"),
    ],
)
def test_what_does_not_fit_is_refused_on_the_device(
    rtx: Any,
    ready: Callable[[str], Path],
    tmp_path: Path,
    capsys: Any,
    case: tuple[str, list[str], int, str],
) -> None:
    change, arguments, code, words = case
    bundle_dir = copied(ready("merged") / "bundle", tmp_path / "bundle")
    if change == "release":
        rtx.__version__ = "1.8.0.1"
    elif change == "capability":
        rtx.cudart.capability = (7, 5)
    elif change == "invalid":
        rtx.validity = ("INVALID", 2)
    elif change == "gpu":
        rtx.cudart.devices = 0
    elif change == "library":
        sys.modules["tensorrt_rtx"] = None  # type: ignore[assignment]  # the fixture undoes it
    elif change == "record":
        (record,) = (bundle_dir / "engines").glob("one.*.json")
        record.write_text(record.read_text().replace('"8.9"', '"8.8"'))
    assert main(bundle_dir, arguments) == code
    assert words in capsys.readouterr().err


def test_a_folder_that_refuses_kernels_is_told_once(
    rtx: Any, ready: Callable[[str], Path], tmp_path: Path, capsys: Any
) -> None:
    bundle_dir = copied(ready("merged") / "bundle", tmp_path / "bundle")
    for name in NAMES:
        link = bundle_dir / "engines" / f"{name}.rtx.rtx{RTX_VERSION}.rtx-4090-double.cache"
        link.symlink_to(tmp_path / "nowhere")
    assert main(bundle_dir, ["verify"]) == 0
    assert capsys.readouterr().err.count("warning: kernels cannot be kept") == 1
    assert rtx.compiled


def test_a_bundle_for_another_library_is_not_run_by_this_one(
    rtx: Any, bundles: Any, capsys: Any
) -> None:
    assert main(bundles("merged"), ["--runtime", TENSORRT_RTX]) == 4
    assert "It is for: tensorrt, onnxruntime." in capsys.readouterr().err
    assert rtx.compiled == 0


def test_an_index_with_a_library_that_is_not_known_is_refused(
    ready: Callable[[str], Path], tmp_path: Path
) -> None:
    from tests.bundle.test_entry_point import seal

    bundle_dir = copied(ready("merged") / "bundle", tmp_path / "bundle")
    for change in ({"library": "os"}, {"library": ["tensorrt"]}, {"sources": {"a": 1}}):
        index = json.loads((ready("merged") / "bundle" / "bundle.json").read_text()) | change
        seal(bundle_dir, index)
        with pytest.raises(LoraExportError, match="is damaged"):
            verify_bundle(bundle_dir)


WINDOWS = """
import runpy
import onnx, onnxruntime  # what the double runs graphs with
import pytest
from tests.helpers.double import RTX_VERSION, install_double
install_double(pytest.MonkeyPatch(), RTX_VERSION, library="tensorrt_rtx")
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "lora_export"]:
    del sys.modules[name]
"""


def test_the_entry_point_needs_nothing_that_windows_lacks(
    ready: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle_dir = copied(ready("swappable") / "bundle", tmp_path / "bundle")
    program = (
        f"{WINDOWS}\n{LIKE_WINDOWS}\n"
        f"sys.argv = ['run.py', '--rounds', '10', '--max-ratio', '1000']\n"
        f"sys.path.remove({str(REPOSITORY)!r})\n"
        f"runpy.run_path({str(bundle_dir / 'run.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = read_report(bundle_dir, TENSORRT_RTX)
    assert {row["verdict"] for row in report["parity"]["graphs"].values()} == {"pass"}
    assert len(list((bundle_dir / "engines").glob("*.cache"))) == 1
