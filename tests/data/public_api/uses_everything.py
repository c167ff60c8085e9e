"""A user's program: every public name, with types and without ``Any``; never run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import lora_export as lx


class Lines:
    """A `Progress` of the user's own."""

    def start(self, what: str, total_bytes: int | None = None) -> None:
        print(what, total_bytes)

    def advance(self, count_bytes: int) -> None:
        print(count_bytes)

    def note(self, text: str) -> None:
        print(text)


def build(progress: lx.Progress) -> lx.Outcome:
    """A recipe from a file, and one that is written here."""
    lx.merge_and_build(lx.load_recipe("recipe.yaml"), progress)
    lx.load_recipe(Path("recipe.yaml"), {"dtype": "float16", "verify": {"enabled": False}})
    recipe = lx.Recipe(
        base="org/base",
        adapters=[lx.AdapterSpec(name="sst2", source="adapters/sst2", scale=0.5)],
        combine=lx.CombineSpec(method="linear", weights=[1.0]),
        mode=lx.Mode.SWAPPABLE,
        targets=["cpu"],
        quantize=lx.QuantizeSpec(weights="int4", keep=["score"]),
        verify=lx.VerifySpec(dataset="heldout.jsonl", metric="accuracy"),
        latency=lx.LatencySpec(max_ratio=1.1),
        bundle=lx.BundleSpec(enabled=False),
        triton=lx.TritonSpec(repository="models", max_batch_size=8),
        layouts=["genai"],
        output="out",
    )
    outcome = lx.merge_and_build(recipe, progress, strict=True)
    repository: lx.ModelRepository | None = outcome.triton
    if repository is not None:
        print(repository.repository / repository.models[0], repository.memory_bytes)
    manifest: lx.Manifest = outcome.manifest
    for name, adapter in manifest.adapters.items():
        print(name, adapter.rank, adapter.labels, manifest.graphs[name].verification)
    print(outcome.output / "base.onnx", outcome.exit_code(strict=True), outcome.notes)
    print(read(outcome.reports))
    return outcome


def read(reports: lx.Reports) -> str:
    """Verification and measurement."""
    parity: lx.ParityReport | None = reports.parity
    latency: lx.LatencyReport | None = reports.latency
    fidelity: lx.FidelityReport | None = reports.fidelity
    quantization: lx.QuantizationReport | None = reports.quantization
    graph: lx.GraphReport | None = reports.graph
    bundle: lx.PackedBundle | None = reports.bundle
    if parity is not None:
        print([(name, row.verdict, row.reason) for name, row in parity.graphs.items()])
    if latency is not None and fidelity is not None:
        print([row.verdict for row in latency.graphs.values()], list(fidelity.graphs))
    if quantization is not None:
        print([(row.verdict, row.loss) for row in quantization.graphs.values()])
    if graph is not None:
        print(graph.by_name)
    return bundle.file if bundle is not None else ""


def change(export: Path) -> None:
    """Adapters come and go."""
    lx.add(export, ["sst2=adapters/sst2", Path("adapters/mnli")], base="org/base", replace=True)
    lx.add(str(export), [lx.AdapterSpec(source="adapters/qqp")], progress=Lines())
    lx.remove(str(export), "sst2")
    outcome = lx.verify(export, base=Path("base"), adapters=["sst2=there"], dataset="held.jsonl")
    print(outcome.exit_code())


def time(export: str) -> int:
    """Latency, with a gate."""
    found: lx.Benchmark = lx.bench(
        export, runners=["ort-cpu"], lengths=(8, 128), max_ratio=1.05, report="bench.json"
    )
    report: lx.BenchReport = found.report
    for cell in report.cells:
        for ratio in cell.ratios:
            print(cell.name, ratio.subject, ratio.ratio, ratio.interval[0])
    if report.gate is not None:
        print(report.gate.verdict, found.file.name)
    return found.exit_code()


def merge() -> str:
    """A checkpoint, and back."""
    merged: lx.Merge = lx.merge_checkpoint(
        "org/base", ["a=adapters/a", "b=adapters/b"], "merged",
        combine=lx.CombineSpec(method="cat"), dtype="float16", verify=True,
    )  # fmt: skip
    record: lx.MergeRecord = merged.record
    print(merged.output.name, record.fingerprint, record.verification.relative_l2, merged.lossy)
    return lx.unmerge_checkpoint(merged.output, "org/base", "again")


def convert() -> list[str]:
    """An adapter in another format."""
    done: lx.Converted = lx.convert("adapters/a", "a.onnx_adapter", to="onnx_adapter", scale=2.0)
    return [*done.files, done.format, f"{done.modules + done.saved}"]


def lay_out() -> list[str]:
    """An export for another runtime."""
    done: lx.RuntimeLayout = lx.layout("out", "genai", "out-genai", adapter="sst2", replace=True)
    one: lx.WrittenLayout = done.folders[0]
    return [done.runtime, str(done.output), str(one.folder), *one.adapters, *one.files, *one.notes]


def look(path: Path) -> int:
    """Inspection of a path, and of a pair."""
    found = lx.inspect(path, hashed=True)
    if isinstance(found, lx.CheckpointReport):
        print(found.model_type, found.labels, sum(found.files.values()))
    elif isinstance(found, lx.AdapterReport):
        print(found.ranks, found.modules[0].pattern)
    else:
        export: lx.ExportReport = found
        print(export.base.source, export.graphs["base"].opset, export.problems)
    pair: lx.PairReport = lx.inspect(path, "adapters/a", alpha=16.0)
    fit: lx.FitReport = pair.fit
    return fit.matched if fit.fits else len(fit.mismatches)


def serve(export: str) -> int:
    """A session; its inputs and outputs are NumPy's."""
    ids = np.zeros((1, 8), np.int64)
    there: dict[str, str | Path | lx.AdapterSpec] = {
        "new": lx.AdapterSpec(source="adapters/new", scale=0.5)
    }
    there["moved"] = "adapters/moved"
    with lx.open_export(export, adapters=there, cache_bytes=1 << 30) as session:
        own: lx.Session = session
        print(own.adapters, own.cached_bytes, own.inputs[0].name, own.ways("new"))
        own.load("new", how="merge_at_load")
        outputs = own.run({"input_ids": ids, "attention_mask": ids}, adapter="new")
        rows = own.run({"input_ids": ids}, adapter_ids=["new", None])
        return outputs["logits"].shape[0] + rows["logits"].size


def fail(error: lx.LoraExportError) -> tuple[str, str | None, int]:
    """The errors."""
    print(lx.__version__)
    try:
        raise error
    except (lx.AdapterError, lx.BundleError, lx.CheckpointError, lx.ExportDirectoryError) as found:
        return found.message, found.hint, found.exit_code
    except (lx.HubError, lx.StorageError, lx.InputError) as found:
        return found.message, found.hint, found.exit_code
    except (lx.FixedLengthError, lx.TiedParameterError, lx.UnsupportedError) as found:
        return found.message, found.hint, found.exit_code
    except (lx.LatencyError, lx.ParityError, lx.UsageError, lx.MissingRuntimeError) as found:
        return found.message, found.hint, found.exit_code
