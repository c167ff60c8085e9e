"""The outcome of a command as JSON, and as a short text."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lora_export.cli.closing import (
    headline,
    next_line,
    next_words,
    on_device_line,
    report_line,
    report_of,
)
from lora_export.cli.quantized_text import REMEDIES, saved_bytes
from lora_export.cli.text import size
from lora_export.core.quantization import SCHEMES
from lora_export.exports.stored_adapters import stored_adapter
from lora_export.exports.verdict import NOT_APPLICABLE, deployable, is_deployable, verdict_of
from lora_export.ondevice.printable import shell_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_export.commands.outcome import Outcome, PackedBundle, Reports
    from lora_export.core.manifest import Manifest
    from lora_export.core.reports.graph_report import GraphReport, InitializerRow
    from lora_export.core.reports.latency_report import LatencyRow
    from lora_export.core.reports.parity_report import DatasetRow, ParityRow
    from lora_export.core.reports.quantization_report import QuantizationRow
    from lora_export.exports.quantized_summary import QuantizedSummary

__all__ = ["describe", "render"]

GOLDEN: Final = "golden outputs"
_SHOWN: Final = 3


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON values."""
    from lora_export.exports.quantized_summary import quantized_summary

    manifest = outcome.manifest
    found = quantized_summary(manifest)
    quantized = {} if found is None else {"quantized": asdict(found)}
    served: dict[str, Any] = {}
    if outcome.triton is not None:
        served["triton"] = outcome.triton.as_json()
    if outcome.layouts:
        served["layouts"] = [each.as_json() for each in outcome.layouts]
    report = report_of(outcome)
    return {
        "verdict": verdict_of(manifest),
        "deployable": list(deployable(manifest)),
        "output": str(outcome.output),
        "report": None if report is None else str(report),
        "next": shell_command(next_words(outcome)),
        "base": manifest.base.model_dump(),
        "graphs": {name: record.model_dump() for name, record in manifest.graphs.items()},
        "adapters": {name: record.model_dump() for name, record in manifest.adapters.items()},
        "reports": outcome.reports.as_json(),
        "notes": list(outcome.notes),
        **quantized,
        **served,
    }


def render(outcome: Outcome, remarks: Sequence[str] = ()) -> list[str]:
    """Return the outcome as lines: verdict, what was applied, figures, report, next command.

    Args:
        outcome: The outcome.
        remarks: Lines that precede the report.
    """
    report = report_of(outcome)
    return [
        headline(outcome),
        *_content_lines(outcome),
        *remarks,
        *([] if report is None else [report_line(report)]),
        *_next_lines(outcome),
    ]


def _next_lines(outcome: Outcome) -> list[str]:
    """Return the next command; that of a bundle is for the device."""
    bundle = outcome.reports.bundle
    if bundle is not None:
        return [on_device_line(Path(bundle.file).name, bundle.name)]
    return [next_line(next_words(outcome))]


def _content_lines(outcome: Outcome) -> list[str]:
    """Return what the export has, and the figures of the reports."""
    from lora_export.exports.quantized_summary import quantized_summary

    manifest = outcome.manifest
    base = manifest.base
    lines = [f"  {base.model_class}, {base.task}, {base.dtype}"]
    reports = outcome.reports
    if (found := quantized_summary(manifest)) is not None:
        lines.append(f"  quantized: {', '.join(_schemes(found))}; {saved_bytes(found, base.dtype)}")
    if reports.graph is not None:
        lines.append(f"  graph: {_graph_line(reports.graph)}")
    if not manifest.adapters:
        lines.append("  no adapter: the base alone")
    for name, record in manifest.adapters.items():
        file, verified = _where(manifest, name)
        lines.append(
            f"  {name}: {file}, {f'rank {record.rank}, ' if record.rank else ''}"
            f"{record.tensors_applied} of {record.tensors_total} tensors applied, "
            f"{verified}"
        )
        if record.companions is not None and record.companions.taken:
            lines.append(f"    from its directory: {', '.join(record.companions.taken)}")
    lines += _report_lines(manifest, reports)
    if reports.bundle is not None:
        lines.append(f"  bundle: {_bundle_line(reports.bundle)}")
    if outcome.triton is not None:
        lines.append(f"  triton: {outcome.triton.repository}: {', '.join(outcome.triton.models)}")
    for each in outcome.layouts:
        held = ", ".join(str(one.folder) for one in each.folders)
        lines.append(f"  layout for {each.runtime}: {held}")
    return lines


def _schemes(found: QuantizedSummary) -> list[str]:
    """Return how many parameters each scheme has."""
    counted = Counter(dict.fromkeys(SCHEMES, 0))
    for each in found.groups:
        counted[each.scheme] += each.parameters
    return [f"{count} in {scheme}" for scheme, count in counted.items() if count]


def _report_lines(manifest: Manifest, reports: Reports) -> list[str]:
    """Return the figures of each graph and adapter."""
    lines = []
    for name, kept in reports.fidelity.graphs.items() if reports.fidelity else ():
        lines.append(
            f"  fidelity of {name}: relative error {kept.relative_error:.2e} of the delta, "
            f"{kept.unmoved_share:.2%} of the entries did not move"
        )
    for name, row in reports.parity.graphs.items() if reports.parity else ():
        lines += _graph_lines(manifest, name, row)
    for name, lost in reports.quantization.graphs.items() if reports.quantization else ():
        lines += _loss_lines(name, lost)
    for name, timed in reports.latency.graphs.items() if reports.latency else ():
        lines.append(f"  latency of {name}: {_latency_line(timed)}")
    return lines


def _graph_lines(manifest: Manifest, name: str, row: ParityRow) -> list[str]:
    """Return the parity of a graph, and of each adapter where they share it."""
    applies = name not in manifest.graphs or is_deployable(manifest.graphs[name])
    verdict = row.verdict if applies else NOT_APPLICABLE
    lines = _parity_lines(f"parity of {name}", row, verdict, indent=2)
    for adapter, own in row.adapters.items():
        lines += _parity_lines(f"with {adapter}", own, own.verdict, indent=4)
    return lines


def _loss_lines(name: str, row: QuantizationRow) -> list[str]:
    """Return what quantization cost a graph, and each adapter where they share it."""
    lines = [f"  quantization of {name}: {row.verdict}: {row.reason}"]
    if (loss := row.loss) is not None:
        figures = {
            "gain": loss.gain, "cosine": loss.cosine, "relative L2": loss.relative_l2,
            "KL": loss.mean_kl, "top-1 agreement": loss.top1_agreement,
        }  # fmt: skip
        known = (f"{what} {each:.3g}" for what, each in figures.items() if each is not None)
        lines.append(f"    {', '.join(known)}")
    if row.dataset is not None:
        lines.append(f"    {_dataset_line(row.dataset)}")
    if row.verdict == "fail" and row.loss is not None:
        lines.append(f"    {REMEDIES}")
    for adapter, own in row.adapters.items():
        lines += [f"  {line}" for line in _loss_lines(adapter, own)]
    return lines


def _bundle_line(bundle: PackedBundle) -> str:
    return f"{bundle.file}, {bundle.files} files, {size(bundle.bytes)}, for {bundle.target}"


def _graph_line(report: GraphReport) -> str:
    """Return how a graph of the user's was matched; what was not is named."""
    parts = [f"{report.by_name} initializers matched by name, {report.by_content} by content"]
    found: dict[str, Sequence[InitializerRow]] = {
        "ambiguous": report.ambiguous,
        "unmatched": report.unmatched,
    }
    for key, entries in found.items():
        if entries:
            shown = ", ".join(f"{e.initializer} {e.shape}" for e in entries[:_SHOWN])
            more = ", …" if len(entries) > _SHOWN else ""
            parts.append(f"{len(entries)} {key}: {shown}{more}")
    return "; ".join(parts)


def _parity_lines(what: str, row: ParityRow, verdict: str, *, indent: int) -> list[str]:
    lines = [f"{' ' * indent}{what}: {_parity_line(row, verdict)}"]
    if row.dataset is not None:
        lines.append(f"{' ' * (indent + 2)}{_dataset_line(row.dataset)}")
    return lines


def _parity_line(row: ParityRow, verdict: str) -> str:
    metrics = row.metrics
    if metrics is None or metrics.relative_l2 is None:
        return f"{verdict}: {row.reason}"
    against = f", effect of the adapter {row.effect:.3g}" if row.effect is not None else ""
    top1 = metrics.top1_agreement
    agreement = f", top-1 agreement {top1:.4f}" if top1 is not None else ""
    return (
        f"{verdict}: relative L2 error {metrics.relative_l2:.2e} "
        f"(tolerance {row.tolerance or 0:.0e}{against}){agreement}{_why(row, verdict)}"
    )


def _why(row: ParityRow, verdict: str) -> str:
    """Return remarks on the figures: the reason, and that golden outputs were compared."""
    parts = [row.reason] if row.reason and verdict != "pass" else []
    if verdict == "fail" and "no measurable effect" in row.reason:
        parts.append("an untrained adapter passes with --allow-no-effect")
    if row.against == GOLDEN:
        parts.append(f"against the {GOLDEN}")
    return "".join(f"; {part}" for part in parts)


def _dataset_line(row: DatasetRow) -> str:
    graph, reference = ("nan" if v is None else f"{v:.4f}" for v in (row.graph, row.reference))
    examples = "1 held-out example" if row.count == 1 else f"{row.count} held-out examples"
    scores = (
        f"{row.metric} on {examples}: graph {graph}, "
        f"PEFT in torch {reference}, {row.disagreements} predictions differ"
    )
    if not row.disagreements or row.difference is None or row.difference_interval is None:
        return scores
    low, high = row.difference_interval
    test = f", McNemar p = {row.mcnemar.p_value:.2g}" if row.mcnemar is not None else ""
    return f"{scores}; difference {row.difference:+.4f} [{low:+.4f}, {high:+.4f}]{test}"


def _latency_line(row: LatencyRow) -> str:
    if row.ratio is None or row.ratio_interval is None:
        return f"{row.verdict}: {row.reason}"
    low, high = row.ratio_interval
    return (
        f"{row.verdict}: {row.median_ms:.2f} ms, base {row.base_median_ms:.2f} ms, "
        f"paired ratio {row.ratio:.3f} [{low:.3f}, {high:.3f}], limit {row.max_ratio:.2f}"
    )


def _where(manifest: Manifest, name: str) -> tuple[str, str]:
    """Return the file that has an adapter, and what is known of it there."""
    stored = stored_adapter(manifest, name)
    return stored.place, stored.record.verification
