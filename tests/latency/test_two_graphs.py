"""``bench`` of an encoder and a decoder: what a run is, and what it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from lora_export.commands import bench as benchmark
from lora_export.commands.export_base import config_of
from lora_export.core.errors import UnsupportedError, UsageError
from lora_export.core.manifest import read_manifest
from lora_export.latency.points import Point, Source
from lora_export.latency.two_graphs import open_two
from lora_export.runtime.ort import CPU
from lora_export.runtime.ort_encoder_decoder import OrtEncoderDecoder
from tests.helpers.builds import build

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

TASKS = {"t5": "text2text-generation", "whisper": "automatic-speech-recognition"}


@pytest.fixture(scope="module", params=TASKS)
def made(request, tiny, tmp_path_factory) -> tuple[str, Path, Path]:
    task = TASKS[request.param]
    base = tiny.base(request.param, task)
    out = tmp_path_factory.mktemp(request.param) / "out"
    build(base, {"one": tiny.adapter(base, task=task, labels_count=None)}, out)
    return request.param, base, out


def test_prefills_and_steps_are_timed_and_judged(made):
    kind, _, out = made
    found = benchmark.bench(
        out, batches=(1, 2), lengths=(4, 8), pasts=(3,), rounds=5, max_rounds=5, max_ratio=1000
    ).report
    names = [cell.name for cell in found.cells]
    if kind == "t5":
        assert names[:2] == ["prefill 1×4", "prefill 1×8"]
        assert names[-2:] == ["decode 1×1 after 3, encoder 8", "decode 2×1 after 3, encoder 8"]
    else:  # a sound has the length that it has
        assert names == [
            "prefill 1×1", "prefill 2×1",
            "decode 1×1 after 3, encoder 1", "decode 2×1 after 3, encoder 1",
        ]  # fmt: skip
    assert found.gate is not None
    assert {row.verdict for row in found.gate.rows} == {"pass"}
    assert found.subjects["ort-cpu:one"].startup is not None
    files = found.subjects["ort-cpu:one"].files
    assert {"encoder.one.onnx", "decoder.one.onnx"} <= set(files)
    assert "decode" in (out / "reports" / "report.html").read_text()


def test_a_run_computes_what_the_two_graphs_do(made):
    _, _, out = made
    manifest = read_manifest(out)
    source = Source(out, manifest, config_of(out, None))
    record = manifest.graphs["one"]
    point = Point("prefill", 2, 6)
    run = open_two(source, record, CPU, threads=0)(point, 0)
    for _ in range(2):
        run()
    feeds = source.feeds(point, "base", seed=0)
    decoder, _ = OrtEncoderDecoder(out, record).encode(feeds)
    decoder.start(2)
    expected = decoder.logits({"input_ids": np.full((2, 1), 2, np.int64)})
    np.testing.assert_allclose(run.outputs()["logits"], expected, rtol=1e-5, atol=1e-5)


def test_what_is_too_long_and_what_torch_does_not_time_are_refused(made):
    _, base, out = made
    with pytest.raises(UsageError, match="positions"):
        benchmark.bench(out, lengths=(4,), pasts=(100_000,))
    with pytest.raises(UnsupportedError, match="do not time encoder-decoders"):
        benchmark.bench(out, lengths=(4,), runners=("torch",), base=base, rounds=5)
