"""The outcome of a command as JSON, and as a short text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lora_export.cli.text import size
from lora_export.core.modes import BATCHED_GRAPH
from lora_export.exports.verdict import NOT_APPLICABLE, deployable, is_deployable, verdict_of

if TYPE_CHECKING:
    from lora_export.commands.outcome import Outcome
    from lora_export.core.manifest import Manifest

__all__ = ["describe", "render"]

GOLDEN: Final = "golden outputs"
_SHOWN: Final = 3


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON values."""
    manifest = outcome.manifest
    served = {"triton": outcome.triton.describe()} if outcome.triton is not None else {}
    return {
        "output": str(outcome.output),
        "verdict": verdict_of(manifest),
        "deployable": list(deployable(manifest)),
        "base": manifest.base.model_dump(),
        "graphs": {name: record.model_dump() for name, record in manifest.graphs.items()},
        "adapters": {name: record.model_dump() for name, record in manifest.adapters.items()},
        "reports": outcome.reports,
        "notes": list(outcome.notes),
        **served,
    }


def render(outcome: Outcome) -> str:
    """Return the outcome as text: where it is, what was applied, parity, latency."""
    manifest = outcome.manifest
    base = manifest.base
    lines = [f"{outcome.output}: {base.model_class}, {base.task}, {base.dtype}"]
    if "graph" in outcome.reports:
        lines.append(f"  graph: {_graph_line(outcome.reports['graph'])}")
    if not manifest.adapters:
        lines.append("  no adapter: the base's graph only")
    for name, record in manifest.adapters.items():
        file, verified = _where(manifest, name)
        lines.append(
            f"  {name}: {file}, rank {record.rank}, "
            f"{record.tensors_applied} of {record.tensors_total} tensors applied, "
            f"{verified}"
        )
        if record.companions is not None and record.companions.taken:
            lines.append(f"    from its folder: {', '.join(record.companions.taken)}")
    for name, row in outcome.reports.get("fidelity", {}).get("graphs", {}).items():
        lines.append(
            f"  fidelity of {name}: relative error {row['relative_error']:.2e} of the delta, "
            f"{row['unmoved_share']:.2%} of the entries did not move"
        )
    for name, row in outcome.reports.get("parity", {}).get("graphs", {}).items():
        lines += _graph_lines(manifest, name, row)
    for name, row in outcome.reports.get("latency", {}).get("graphs", {}).items():
        lines.append(f"  latency of {name}: {_latency_line(row)}")
    if "bundle" in outcome.reports:
        lines.append(f"  bundle: {_bundle_line(outcome.reports['bundle'])}")
    if outcome.triton is not None:
        lines.append(f"  triton: {outcome.triton.repository}: {', '.join(outcome.triton.models)}")
    return "\n".join(lines)


def _graph_lines(manifest: Manifest, name: str, row: dict[str, Any]) -> list[str]:
    """Return the parity of a graph, and of each adapter where they share it."""
    if name in manifest.graphs and not is_deployable(manifest.graphs[name]):
        row = {**row, "verdict": NOT_APPLICABLE}
    lines = _parity_lines(f"parity of {name}", row, indent=2)
    for adapter, own in row.get("adapters", {}).items():
        lines += _parity_lines(f"with {adapter}", own, indent=4)
    return lines


def _bundle_line(row: dict[str, Any]) -> str:
    return (
        f"{row['file']}, {row['files']} files, {size(row['bytes'])}, for {row['target']}; unpack "
        f"it there and run: python3 run.py"
    )


def _graph_line(row: dict[str, Any]) -> str:
    """Return how a graph of the user's was matched; what was not is named."""
    parts = [f"{row['by_name']} initializers matched by name, {row['by_content']} by content"]
    for key in ("ambiguous", "unmatched"):
        if entries := row[key]:
            shown = ", ".join(f"{e['initializer']} {e['shape']}" for e in entries[:_SHOWN])
            more = ", …" if len(entries) > _SHOWN else ""
            parts.append(f"{len(entries)} {key}: {shown}{more}")
    return "; ".join(parts)


def _parity_lines(what: str, row: dict[str, Any], *, indent: int) -> list[str]:
    lines = [f"{' ' * indent}{what}: {_parity_line(row)}"]
    if row.get("dataset"):
        lines.append(f"{' ' * (indent + 2)}{_dataset_line(row['dataset'])}")
    return lines


def _parity_line(row: dict[str, Any]) -> str:
    if row.get("metrics") is None:
        return f"{row['verdict']}: {row['reason']}"
    metrics = row["metrics"]
    effect = row.get("effect")
    against = f", effect of the adapter {effect:.3g}" if effect is not None else ""
    top1 = metrics.get("top1_agreement")
    agreement = f", top-1 agreement {top1:.4f}" if top1 is not None else ""
    return (
        f"{row['verdict']}: relative L2 error {metrics['relative_l2']:.2e} "
        f"(tolerance {row['tolerance']:.0e}{against}){agreement}{_why(row)}"
    )


def _why(row: dict[str, Any]) -> str:
    """Return what the figures do not tell: the reason, and that golden outputs were compared."""
    parts = [row["reason"]] if row.get("reason") and row["verdict"] != "pass" else []
    if row["verdict"] == "fail" and "no measurable effect" in (row.get("reason") or ""):
        parts.append("an untrained adapter passes with --allow-no-effect")
    if row.get("against") == GOLDEN:
        parts.append(f"against the {GOLDEN}")
    return "".join(f"; {part}" for part in parts)


def _dataset_line(row: dict[str, Any]) -> str:
    graph, reference = (
        "nan" if v is None else f"{v:.4f}" for v in (row["graph"], row["reference"])
    )
    examples = "1 held-out example" if row["count"] == 1 else f"{row['count']} held-out examples"
    scores = (
        f"{row['metric']} on {examples}: graph {graph}, "
        f"PEFT in torch {reference}, {row['disagreements']} predictions differ"
    )
    if not row["disagreements"] or row["difference"] is None:
        return scores
    low, high = row["difference_interval"]
    found = row["mcnemar"]
    test = f", McNemar p = {found['p_value']:.2g}" if found else ""
    return f"{scores}; difference {row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]{test}"


def _latency_line(row: dict[str, Any]) -> str:
    if row.get("ratio") is None:
        return f"{row['verdict']}: {row['reason']}"
    low, high = row["ratio_interval"]
    return (
        f"{row['verdict']}: {row['median_ms']:.2f} ms, base {row['base_median_ms']:.2f} ms, "
        f"paired ratio {row['ratio']:.3f} [{low:.3f}, {high:.3f}], limit {row['max_ratio']:.2f}"
    )


def _where(manifest: Manifest, name: str) -> tuple[str, str]:
    """Return the file that has an adapter, and what is known of it there."""
    record = manifest.adapters[name]
    if (row := record.row) is not None:
        return f"{manifest.graphs[BATCHED_GRAPH].onnx} row {row.row}", row.verification
    if (pack := record.pack) is not None:
        return pack.onnx_adapter, pack.verification
    graph = manifest.graphs[name]
    return graph.onnx, graph.verification
