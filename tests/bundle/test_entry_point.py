"""A bundle on a device: ``run.py`` in an empty folder, without torch and without this project."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import numpy as np
import pytest

from lora_export.bundle.packing import unpack
from lora_export.bundle.program import program
from lora_export.ondevice.printable import printable
from tests.helpers.bundles import copied, old_python, pack_plain, read_report, run_bundle
from tests.helpers.slow import but_the_first

KINDS = ("merged", "decoder", "batched", "half", "swappable", "static", "two")


@pytest.mark.parametrize("kind", but_the_first(KINDS, slow=2))
def test_every_kind_verifies_without_torch(bundles, site, kind, tmp_path) -> None:
    bundle_dir = copied(bundles(kind), tmp_path / "empty")
    done = run_bundle(bundle_dir, "verify", site=site)
    assert done.returncode == 0, done.stderr
    report = read_report(bundle_dir)
    rows = report["parity"]["graphs"]
    assert set(rows) == {"base", "one", "two"}
    assert {row["verdict"] for row in rows.values()} == {"pass"}
    for name in ("one", "two"):
        assert rows[name]["effect"] > 0.01
        assert 0 < rows[name]["metrics"]["relative_l2"] <= rows[name]["tolerance"]


def test_it_is_run_without_torch_and_without_this_project(bundles, site, tmp_path) -> None:
    bundle_dir = copied(bundles("merged"), tmp_path / "empty")
    code = (bundle_dir / "run.py").read_text()
    probe = 'import sys; print(sorted({n.partition(".")[0] for n in sys.modules}), file=sys.stderr)'
    (bundle_dir / "run.py").write_text(
        code.replace(
            "sys.exit(run_protected(lambda: main(ROOT)))",
            f"code = main(ROOT)\n{probe}\nprint(main.__module__)",
        )
    )
    index = json.loads((bundle_dir / "bundle.json").read_text())
    data = (bundle_dir / "run.py").read_bytes()
    index["files"]["run.py"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    seal(bundle_dir, index)
    done = run_bundle(bundle_dir, "verify", site=site)
    loaded = set(re.findall(r"'(\w+)'", done.stderr.splitlines()[-1]))
    assert {"numpy", "onnxruntime", "lora_export"} <= loaded
    assert not loaded & {"torch", "onnx", "pydantic", "click", "yaml", "ml_dtypes", "safetensors"}
    assert not list(bundle_dir.rglob("__pycache__"))


def seal(bundle_dir, index) -> None:
    """Write an index with the digest that belongs to it, as only who packs should."""
    rest = {key: value for key, value in index.items() if key != "sha256"}
    plain = json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()
    rest["sha256"] = hashlib.sha256(plain).hexdigest()
    (bundle_dir / "bundle.json").write_text(json.dumps(rest))


def test_texts_of_an_index_are_shown_escaped(tmp_path) -> None:
    bad = "x\x1b[2J\n::error::y\u202e##[error]" + "A" * 9000
    archive = pack_plain(tmp_path / "plain.tar", **program())
    bundle_dir = tmp_path / "pl\x1bain"
    unpack(archive, bundle_dir)
    index = json.loads((bundle_dir / "bundle.json").read_text())
    index["target"] = index["tool"] = bad
    seal(bundle_dir, index)
    for arguments in (["files"], ["verify"], ["verify", "--only", bad], [bad]):
        done = run_bundle(bundle_dir, *arguments)
        text = done.stdout + done.stderr
        assert printable(text, keep="\n") == text
        assert "Traceback" not in text
        assert not any(line.lstrip().startswith("::") for line in text.split("\n"))
    done = run_bundle(bundle_dir, "files")
    assert done.returncode == 3
    assert r"x\x1b[2J\n::error::y\u202e#" in done.stderr
    assert max(map(len, done.stderr.split("\n"))) < 2_100


def test_all_of_it_is_the_default(bundles, site, tmp_path) -> None:
    bundle_dir = copied(bundles("decoder"), tmp_path / "empty")
    done = run_bundle(bundle_dir, "--rounds", "10", site=site)
    assert done.returncode == 0, done.stderr
    assert "TensorRT did not run" in done.stdout.splitlines()[0]
    latency = read_report(bundle_dir)["latency"]["graphs"]
    assert set(latency) == {f"{name}, {stage}" for name in ("one", "two")
                            for stage in ("prefill", "step")}  # fmt: skip
    for row in latency.values():
        low, high = row["ratio_interval"]
        assert low <= row["ratio"] <= high
        assert row["rounds"] == 10
        assert row["verdict"] == "unverified"
        assert "without TensorRT" in row["reason"]
    assert latency["one, prefill"]["input"][1] > 1
    assert latency["one, step"]["input"][1] == 1


def test_a_step_is_fed_what_the_prefill_returned(bundles) -> None:
    """The step's logits are those of the last position of the whole text, computed at once."""
    from lora_export.ondevice.bundle.bundle_index import read_index
    from lora_export.ondevice.bundle.runtimes import open_runtime
    from lora_export.ondevice.bundle.verify_and_measure import _opened, _stages

    bundle_dir = bundles("decoder")
    index = read_index(bundle_dir)
    runtime = open_runtime("onnxruntime", bundle_dir, index, print)
    feeds = dict(np.load(bundle_dir / "latency.npz"))
    short = {
        name: each[:, :5] if not name.startswith("past") else each for name, each in feeds.items()
    }
    with _opened(bundle_dir, index, runtime, "one") as graph:
        stages = _stages(graph, short)
        step = {**stages["step"], "input_ids": feeds["input_ids"][:, 5:6]}
        whole = {name: each[:, :6] if not name.startswith("past") else each
                 for name, each in feeds.items()}  # fmt: skip
        np.testing.assert_allclose(
            graph.run(step)["logits"][:, -1], graph.run(whole)["logits"][:, -1], atol=1e-5
        )


def test_the_report_says_what_ran(bundles, site, tmp_path) -> None:
    bundle_dir = copied(bundles("merged"), tmp_path / "empty")
    done = run_bundle(
        bundle_dir, "verify", "--json", "--report", str(tmp_path / "r.json"), site=site
    )
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "r.json").read_text())
    assert report["runtime"]["name"] == "onnxruntime"
    assert report["runtime"]["tensorrt_ran"] is False
    assert report["bundle"]["target"] == "jetson-orin"
    assert report["machine"]["numpy"] == np.__version__
    assert not (bundle_dir / "report.onnxruntime.json").exists()


def test_without_tensorrt_nothing_is_built(bundles, site) -> None:
    for arguments in (("build",), ("verify", "--runtime", "tensorrt")):
        done = run_bundle(bundles("merged"), *arguments, site=site)
        assert done.returncode == 7
        assert "TensorRT is" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_wrong_graph_fails_its_parity(bundles, site, tmp_path) -> None:
    bundle_dir = copied(bundles("merged"), tmp_path / "empty")
    shutil.copy(bundle_dir / "weights/two.safetensors", bundle_dir / "weights/one.safetensors")
    index = json.loads((bundle_dir / "bundle.json").read_text())
    index["files"]["weights/one.safetensors"] = index["files"]["weights/two.safetensors"]
    seal(bundle_dir, index)
    done = run_bundle(bundle_dir, "verify", site=site)
    assert done.returncode == 5
    rows = read_report(bundle_dir)["parity"]["graphs"]
    assert rows["one"]["verdict"] == "fail"
    assert rows["two"]["verdict"] == rows["base"]["verdict"] == "pass"
    assert "above the tolerance" in done.stdout


@pytest.mark.parametrize(
    "change",
    [lambda row: row["reading"].update(outputs=["gone"]),
     lambda row: row["reading"].update(per_token=True),
     lambda row: row.update(encoder="base")],
)  # fmt: skip
def test_an_index_that_reads_a_graph_wrongly_is_told(bundles, site, tmp_path, change) -> None:
    bundle_dir = copied(bundles("merged"), tmp_path / "empty")
    index = json.loads((bundle_dir / "bundle.json").read_text())
    change(index["checks"]["one"])
    seal(bundle_dir, index)
    done = run_bundle(bundle_dir, "verify", "--only", "one", site=site)
    assert done.returncode == 3
    assert "'golden/one.npz'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("weights/one.safetensors", ("weights/one.safetensors", "not the packed file")),
        ("golden/base.npz", ("golden/base.npz", "not the packed file")),
        (
            "lora_export/ondevice/judge/metrics.py",
            ("lora_export/ondevice/judge/metrics.py", "not the packed file"),
        ),
    ],
)
def test_a_file_that_changed_is_named(bundles, site, tmp_path, file, words) -> None:
    bundle_dir = copied(bundles("merged"), tmp_path / "empty")
    data = bytearray((bundle_dir / file).read_bytes())
    data[-1] ^= 1
    (bundle_dir / file).write_bytes(
        bytes(data) if not file.endswith(".py") else bytes(data[:-1]) + b" "
    )
    done = run_bundle(bundle_dir, "files", site=site)
    assert done.returncode == 3
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_an_index_that_was_edited_is_refused(bundles, site, tmp_path) -> None:
    bundle_dir = copied(bundles("merged"), tmp_path / "empty")
    text = (bundle_dir / "bundle.json").read_text()
    (bundle_dir / "bundle.json").write_text(text.replace('"max_ratio": 1.05', '"max_ratio": 9.05'))
    done = run_bundle(bundle_dir, site=site)
    assert done.returncode == 3
    assert "was edited" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("--only", "three"), "three"), (("--rounds", "3"), "--rounds"), (("dance",), "dance"),
     (("--max-ratio", "nan"), "--max-ratio"), (("--max-ratio", "0"), "--max-ratio"),
     (("--report", "."), "--report")],
)  # fmt: skip
def test_usage_is_checked(bundles, site, arguments, word) -> None:
    done = run_bundle(bundles("merged"), *arguments, site=site)
    assert done.returncode == 2
    assert word in done.stderr


def test_only_what_is_asked_for_is_compared(bundles, site, tmp_path) -> None:
    done = run_bundle(bundles("merged"), "verify", "--only", "two", "--json",
                      "--report", str(tmp_path / "r.json"), site=site)  # fmt: skip
    assert list(json.loads(done.stdout)["parity"]["graphs"]) == ["two"]


@pytest.mark.skipif(old_python() is None, reason="needs: make device-env (Python 3.10)")
@pytest.mark.parametrize("kind", KINDS)
def test_python_3_10_with_numpy_1_21_5_runs_it(bundles, kind, tmp_path) -> None:
    bundle_dir = copied(bundles(kind), tmp_path / "empty")
    python = old_python()
    assert python is not None
    done = run_bundle(bundle_dir, "--rounds", "10", python=python)
    assert done.returncode == 0, done.stderr
    report = read_report(bundle_dir)
    assert report["machine"]["python"].startswith("3.10.")
    assert report["machine"]["numpy"] == "1.21.5"
    assert {row["verdict"] for row in report["parity"]["graphs"].values()} == {"pass"}


def test_an_old_python_is_told(bundles) -> None:
    code = (bundles("merged") / "run.py").read_text()
    compile(code, "run.py", "exec", dont_inherit=True)
    guard = code.partition("import pathlib")[0]
    assert "sys.exit(7)" in guard
    assert 'f"' not in guard  # parsed by Python 2 and 3 alike
