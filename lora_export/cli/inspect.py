"""``inspect``: the command, and its reports as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import adapter_keys, adapter_options, common_options
from lora_export.cli.quantized_text import saved_bytes, stored_form
from lora_export.cli.text import aligned, first_few, size
from lora_export.core.errors import InputError
from lora_export.core.modes import Mode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_export.commands.inspect.describe_adapter import AdapterReport, ModuleGroup
    from lora_export.commands.inspect.describe_checkpoint import CheckpointReport
    from lora_export.commands.inspect.describe_export import ExportReport
    from lora_export.commands.inspect.inspect_path import FitReport, PairReport
    from lora_export.core.manifest import AdapterRecord, BaseRecord

__all__ = ["inspect"]

Rows = list[tuple[str, str]]


@click.command(
    "inspect",
    cls=Command,
    examples="""
lora-export inspect ./adapter
lora-export inspect out

# Does this adapter fit this base?
lora-export inspect ./base ./adapter
""",
)
@argument("path", "A checkpoint, an adapter or an export directory.")
@argument("adapter", "An adapter, to see whether it fits PATH.", required=False)
@option("--hash", "hashed", section="Input", is_flag=True,
        help="Read everything: the files of an export, the tensors of a "
             "checkpoint.")  # fmt: skip
@adapter_options
@common_options
def inspect(
    *,
    path: str,
    adapter: str | None,
    hashed: bool,
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Show the contents of a checkpoint, an adapter or an export directory.

    With ADAPTER, also whether it fits the checkpoint or export at PATH by names and shapes.
    The exit code is 3 if it does not fit, or if files of an export differ from its
    manifest.
    """
    from lora_export.commands.inspect.inspect_any import inspect as inspect_any

    reading = adapter_keys(adapter_format, alpha, enable_lora, subfolder)
    reading["adapter_format"] = reading.pop("format", None)
    with Console(as_json=as_json, quiet=quiet) as console:
        if adapter is None:
            report = inspect_any(path, hashed=hashed, progress=console, **reading)
            console.finish(_document(report), _render(report))
            return _exit_code(report)
        pair = inspect_any(path, adapter, hashed=hashed, progress=console, **reading)
        lines = [*_render(pair.base), "", *_render(pair.adapter), "", *_fit_lines(pair.fit)]
        console.finish(_document(pair), lines)
    return _exit_code(pair.base) if pair.fit.fits else InputError.exit_code


def _document(
    report: CheckpointReport | AdapterReport | ExportReport | PairReport,
) -> dict[str, Any]:
    """Return a report as JSON values; records of the manifest without what is not there."""
    from lora_export.core.manifest import AdapterRecord, BaseRecord
    from lora_export.core.quantization_record import StoredForm

    def plain(value: Any) -> Any:
        if isinstance(value, (AdapterRecord, BaseRecord, StoredForm)):
            return value.model_dump(exclude_none=True)
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value

    return asdict(report, dict_factory=lambda pairs: {key: plain(value) for key, value in pairs})


def _exit_code(report: CheckpointReport | AdapterReport | ExportReport) -> int:
    return InputError.exit_code if getattr(report, "problems", ()) else 0


def _render(report: CheckpointReport | AdapterReport | ExportReport) -> list[str]:
    from lora_export.commands.inspect.describe_adapter import AdapterReport
    from lora_export.commands.inspect.describe_checkpoint import CheckpointReport

    if isinstance(report, CheckpointReport):
        return _checkpoint_lines(report)
    return _adapter_lines(report) if isinstance(report, AdapterReport) else _export_lines(report)


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _dtypes(by_bytes: Mapping[str, int]) -> str:
    if len(by_bytes) == 1:
        return next(iter(by_bytes))
    return ", ".join(f"{name} {size(count)}" for name, count in by_bytes.items())


def _checkpoint_lines(report: CheckpointReport) -> list[str]:
    files = [f"{name} {size(count)}" for name, count in report.files.items()]
    rows: Rows = [
        ("model type", report.model_type),
        ("architecture", ", ".join(report.architectures) or "not named"),
        ("task", report.task or "not known; choose one with --task"),
        ("weights", ", ".join(first_few(files, 3))),
        ("tensors", f"{report.tensors:,}"),
        ("parameters", f"{report.parameters:,} in {size(report.bytes)}"),
        ("dtypes", _dtypes(report.dtypes)),
    ]
    if report.quantization:
        rows.append(("quantized", stored_form(report.quantization)))
    if report.tied:
        rows.append(("tied", report.tied))
    if report.labels:
        rows.append(("labels", f"{len(report.labels)}: {', '.join(first_few(report.labels))}"))
    if report.fingerprint:
        rows.append(("fingerprint", report.fingerprint))
    if report.dequantized_fingerprint:
        rows.append(("of its values", report.dequantized_fingerprint))
    return [f"checkpoint {report.path}", *aligned(rows)]


def _adapter_lines(report: AdapterReport) -> list[str]:
    rule = f" ({report.scale_rule})" if report.scale_rule else ""
    ranks: Rows = [
        ("rank", _distribution({str(k): v for k, v in report.ranks.items()})),
        ("scale", _distribution({f"{k:g}": v for k, v in report.scales.items()}) + rule),
    ]
    rows: Rows = [
        ("format", f"{report.format}, {report.task_type or 'no task type'}"),
        ("base", report.base or "not named"),
        *([("made for", report.base_fingerprint)] if report.base_fingerprint else []),
        *([("trained on", f"a residual base ({report.residual})")] if report.residual else []),
        *([("method", report.method)] if report.method != "LORA" else []),
        *(ranks if report.ranks or report.method == "LORA" else []),
        *(("modules" if i == 0 else "", line) for i, line in enumerate(_module_lines(report))),
        *(
            ("saved" if i == 0 else "", line)
            for i, line in enumerate(
                first_few([f"{name} {list(shape)}" for name, shape in report.saved.items()])
            )
        ),
        *([("update", _zero_line(report))] if report.zero_updates else []),
        ("tensors", f"{report.tensors:,}"),
        ("parameters", f"{report.parameters:,} in {size(report.bytes)}"),
        ("dtypes", _dtypes(report.dtypes)),
        ("sha256", report.sha256),
    ]
    return [f"adapter {report.path}", *aligned(rows)]


def _zero_line(report: AdapterReport) -> str:
    zero = report.zero_updates
    if len(zero) == report.updates:
        return "zero: the adapter adds nothing to any weight (not trained, or damaged)"
    return f"zero for {len(zero)} of {report.updates}: {', '.join(first_few(list(zero), 3))}"


def _distribution(modules_by_value: Mapping[str, int]) -> str:
    if len(modules_by_value) == 1:
        return next(iter(modules_by_value))
    parts = [f"{value} ({_count(n, 'module')})" for value, n in modules_by_value.items()]
    return ", ".join(first_few(parts)) or "none: no low-rank update"


def _module_lines(report: AdapterReport) -> list[str]:
    """Return lines such as ``query, value × 6 layers``: groups of the same size and rank in one."""
    names = _short_names([group.pattern for group in report.modules])
    alike: dict[tuple[object, ...], list[str]] = {}
    for group, name in zip(report.modules, names, strict=True):
        alike.setdefault((_times(group), group.ranks, group.scales), []).append(name)
    uniform = len(report.ranks) == len(report.scales) == 1 or not report.ranks
    lines = []
    for (times, ranks, scales), members in alike.items():
        detail = "" if uniform else f": rank {_listed(ranks)}, scale {_listed(scales)}"
        lines.append(f"{', '.join(members)}{times}{detail}")
    return lines or ["none"]


def _listed(values: object) -> str:
    return "/".join(f"{value:g}" for value in values) if isinstance(values, tuple) else str(values)


def _times(group: ModuleGroup) -> str:
    stars = group.pattern.count("*")
    if stars == 0:
        return ""
    return f" × {_count(group.count, 'layer' if stars == 1 else 'module')}"


def _short_names(patterns: Sequence[str]) -> list[str]:
    """Return the shortest tail of each pattern that no other shares."""
    tails = []
    for pattern in patterns:
        parts = pattern.split(".")
        others = [other.split(".") for other in patterns if other != pattern]
        length = 1
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        tails.append(".".join(parts[-length:]))
    return tails


def _fit_lines(fit: FitReport) -> list[str]:
    verdict = "fits" if fit.fits else "does not fit"
    rows: Rows = [
        ("matched", f"{fit.matched:,} of {_count(fit.tensors, 'tensor')}"),
        ("base model", f"known as {fit.prefix!r} inside a model with a head"
         if fit.prefix else "the same names in both"),
        *([("recorded base", fit.recorded)] if fit.recorded else []),
        *([("note", fit.note)] if fit.note else []),
        *([("note", fit.unread)] if fit.unread else []),
        *([("tokens", fit.vocabulary)] if fit.vocabulary else []),
        *(("replaces", name) for name in first_few(fit.replaced)),
        *(("brings", name) for name in first_few(fit.brought)),
        ("trained", f"{fit.trained_share:.3%} of the base's parameters"),
        ("changed", f"{fit.changed_share:.2%} of the base by a merge, {size(fit.changed_bytes)}"),
        *(("mismatch", line) for line in first_few(fit.mismatches)),
    ]  # fmt: skip
    return [f"{verdict} {fit.how}", *aligned(rows)]


def _base_rows(base: BaseRecord) -> Rows:
    """Return how the base's own weights are stored, where they are quantized."""
    found = base.stored_quantization
    return [("base stored", stored_form(found))] if found is not None else []


def _template_rows(base: BaseRecord) -> Rows:
    """Return the shipped template that the graphs were made from, where there is one."""
    made = base.template
    return [] if made is None else [("graph from", f"the template {made.name}")]


def _export_lines(report: ExportReport) -> list[str]:
    base = report.base
    rows: Rows = [
        ("base", f"{base.source} ({base.model_type}, {base.model_class})"),
        ("task", base.task),
        ("dtype", base.dtype),
        ("parameters", f"{report.parameters:,}"),
        *_quantized_rows(report),
        *_base_rows(base),
        *_template_rows(base),
        ("fingerprint", base.fingerprint),
        ("written by", report.tool),
        ("files", f"{report.files} in the manifest, {size(report.bytes)}; {_file_verdict(report)}"),
    ]
    if base.labels:
        rows.insert(3, ("labels", ", ".join(first_few(base.labels))))
    lines = [f"export {report.path}", *aligned(rows), "graphs"]
    lines += aligned(
        (
            name,
            row.mode,
            "not deployable" if row.mode is Mode.BASE and row.missing else row.verification,
            f"opset {row.opset}" if row.form is None else f"opset {row.opset}, {row.form}",
            f"{row.onnx}{f' + {row.encoder}' if row.encoder else ''} {size(row.onnx_bytes)}",
            f"weights {size(row.own_weights_bytes)}"
            + (f" of {size(row.weights_bytes)}" if row.mode is not Mode.BASE else ""),
        )
        for name, row in report.graphs.items()
    )
    if report.adapters:
        lines += ["adapters", *aligned(_adapter_row(n, r) for n, r in report.adapters.items())]
    lines += [f"damaged: {problem}" for problem in report.problems]
    if report.unlisted:
        lines.append(f"not in the manifest: {', '.join(first_few(report.unlisted))}")
    return lines


def _quantized_rows(report: ExportReport) -> Rows:
    """Return what is quantized of an export, and what stays in float."""
    found = report.quantized
    if found is None:
        return []
    rows = [("quantized", f"{saved_bytes(found, report.base.dtype)}, method {found.method}")]
    for each in found.groups:
        form = f"blocks of {each.block_size}" if each.block_size else "a scale per output or row"
        taken = f"{_count(each.parameters, 'parameter')}, {size(each.bytes)}"
        rows.append(("", f"{each.scheme}, {form}: {taken}"))
    if found.kept:
        names = ", ".join(first_few(list(found.kept)))
        rows.append(("in float", f"{size(found.kept_bytes)}: {names}"))
    return rows


def _adapter_row(name: str, record: AdapterRecord) -> tuple[str, ...]:
    return (
        name,
        f"rank {record.rank}" if record.rank else "no rank",
        f"{record.tensors_applied} of {record.tensors_total} tensors applied",
        f"merged from the {record.merged_from}",
        f"{record.format} {record.source}",
    )


def _file_verdict(report: ExportReport) -> str:
    if report.problems:
        return f"{_count(len(report.problems), 'file')} missing or damaged"
    if report.hashed:
        return "every SHA-256 is right"
    return "all present, weight files of the right length (--hash compares contents)"
