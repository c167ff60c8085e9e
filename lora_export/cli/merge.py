"""``merge``: the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.closing import next_line, report_line
from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, option
from lora_export.cli.options import (
    adapter_keys,
    adapter_options,
    base_option,
    combine_options,
    combine_table,
    common_options,
    labels_option,
    out_option,
    override_option,
    parse_adapter,
    parse_scales,
)
from lora_export.cli.text import aligned
from lora_export.cli.words import DTYPE
from lora_export.core.errors import UsageError
from lora_export.core.merge_record import NOT_ASKED, RECORD_NAME

if TYPE_CHECKING:
    from lora_export.commands.merge import Merge
    from lora_export.core.merge_record import MergedVerification

__all__ = ["merge"]

_WORST: Final = 5


@click.command(
    "merge",
    cls=Command,
    examples="""
lora-export merge --base ./base --adapter ./adapter -o merged
lora-export merge --base ./base --adapter ./adapter -o merged --verify

# Restore the base from a merged checkpoint
lora-export merge --unmerge merged --base ./base -o restored
""",
)
@base_option("The base checkpoint: a directory or a hub id.", required=True)
@override_option
@option("--unmerge", section="Input", type=click.Path(path_type=Path), metavar="MERGED",
        help="Restore the base of MERGED from --base, after checking that it is the same "
             "base.")  # fmt: skip
@option("--adapter", "adapters", section="Adapters", multiple=True,
        metavar="[NAME=]PATH_OR_ID", help="The LoRA adapter; several with --combine.")  # fmt: skip
@option("--drop", section="Adapters", multiple=True, metavar="PATTERN",
        help="Leave out adapter tensors whose names match.")  # fmt: skip
@adapter_options
@combine_options
@option("--verify", section="Verification", is_flag=True,
        help="Compare with the unmerged adapter in PEFT before the checkpoint is published; "
             "needs torch, transformers and PEFT.")  # fmt: skip
@option("--allow-no-effect", section="Verification", is_flag=True,
        help="Accept an adapter that changes nothing.")  # fmt: skip
@option("--strict", section="Gate", is_flag=True,
        help="Fail if --verify does not pass, or the adapter names a different "
             "base.")  # fmt: skip
@out_option("The directory of the merged checkpoint.", required=True, metavar="DIR",
            type=click.Path(path_type=Path))  # fmt: skip
@option("--dtype", "--precision", "dtype", section="Output", type=DTYPE,
        help="The dtype of the weights.", default_text="that of each tensor")  # fmt: skip
@option("--max-shard-size", section="Output", metavar="SIZE", default="5GB",
        help="The largest size of a weight file.")  # fmt: skip
@option("--float32-where-lossy", section="Output", is_flag=True,
        help="Store a tensor in float32 if its own dtype would lose too much of the "
             "update.")  # fmt: skip
@labels_option
@common_options
def merge(
    *,
    base: str,
    base_override: str | None,
    adapters: tuple[str, ...],
    unmerge: Path | None,
    output: Path,
    dtype: str | None,
    max_shard_size: str,
    float32_where_lossy: bool,
    allow_no_effect: bool,
    verify: bool,
    strict: bool,
    labels: str | None,
    drop: tuple[str, ...],
    adapter_format: str | None,
    alpha: float | None,
    enable_lora: str | None,
    subfolder: str | None,
    scales: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **flags: Any,
) -> int:
    """Merge an adapter into a base and write a Hugging Face checkpoint, without torch.

    A tokenizer, chat template or generation settings in the adapter's directory replace
    those of the base. --unmerge writes the base again, bit for bit, from --base, whose
    fingerprint must be the one that the merge recorded.
    """
    _one_blas_thread(for_torch=verify)
    from lora_export.commands import merge as merging
    from lora_export.commands.recipe import make_combine, make_specs
    from lora_export.weights.shards import parse_size

    limit_bytes = parse_size(max_shard_size)
    with Console(as_json=as_json, quiet=quiet) as console:
        if unmerge is not None:
            given = (
                base_override,
                dtype,
                float32_where_lossy,
                allow_no_effect,
                verify,
                strict,
                labels,
                drop,
            )
            if adapters or any(given):
                msg = "--unmerge takes --base and --out only"
                raise UsageError(msg, hint="To use another adapter, merge it into the base.")
            digest = merging.unmerge_checkpoint(
                unmerge, base, output, max_shard_bytes=limit_bytes, progress=console
            )
            text = f"{output}: the base of {unmerge}, bit for bit (fingerprint {digest})"
            console.finish({"output": str(output), "fingerprint": digest}, [text])
            return 0
        names = [label.strip() for label in labels.split(",")] if labels else None
        common = {
            "drop": list(drop),
            "labels": names,
            **adapter_keys(adapter_format, alpha, enable_lora, subfolder),
        }
        rows = [{**parse_adapter(each), **common} for each in adapters]
        outcome = merging.merge_checkpoint(
            base,
            make_specs(rows, parse_scales(scales)),
            output,
            base_override=base_override,
            combine=make_combine(combine_table(flags)),
            dtype=dtype,
            max_shard_bytes=limit_bytes,
            float32_where_lossy=float32_where_lossy,
            allow_no_effect=allow_no_effect,
            verify=verify,
            strict=strict,
            progress=console,
        )
        console.finish(_describe(outcome), _render(outcome))
    return 0


def _one_blas_thread(*, for_torch: bool) -> None:
    """Keep NumPy's library from starting threads of its own: the merge has one per processor.

    MKL is torch's library too, which `for_torch` leaves its threads.

    The products are thin (rank 16): handing them out costs far more than computing them. The
    library reads this once, when NumPy is imported; what the user has set stays.
    """
    for name in ("OPENBLAS_NUM_THREADS", *(() if for_torch else ("MKL_NUM_THREADS",))):
        os.environ.setdefault(name, "1")


def _describe(outcome: Merge) -> dict[str, Any]:
    return {
        "output": str(outcome.output),
        **outcome.record.model_dump(),
        "verdict": outcome.record.verification.verdict,
        "lossy": list(outcome.lossy),
        "notes": list(outcome.notes),
    }


def _render(outcome: Merge) -> list[str]:
    """Return the verdict, what was applied, and the tensors that kept least of the delta."""
    record = outcome.record
    adapter = record.adapter
    changed = {n: r for n, r in record.tensors.items() if r.relative_error is not None}
    lines = [
        f"{outcome.output}: {_verdict_line(record.verification)}",
        f"  {record.base.model_type}, {record.dtype or 'dtypes of the base'}",
        (
            f"  {adapter.name}: {f'rank {adapter.rank}, ' if adapter.rank else ''}"
            f"{adapter.tensors_applied} of {adapter.tensors_total} tensors applied"
        ),
    ]
    if record.no_effect:
        lines.append(f"  the adapter changes nothing: {record.no_effect}")
    if record.brought:
        lines.append(f"  added by the adapter: {', '.join(record.brought)}")
    if record.companions:
        lines.append(f"  from the adapter's directory: {', '.join(record.companions)}")
    if record.float32:
        lines.append(f"  kept in float32: {len(record.float32)} tensor(s)")
    lines.append(
        f"  fidelity: relative error {record.fidelity.relative_error:.2e} of the delta, "
        f"{record.fidelity.unmoved_share:.2%} of the entries did not move"
    )
    worst = sorted(changed, key=lambda name: (-(changed[name].relative_error or 0.0), name))
    rows = [
        (name, changed[name].dtype, f"{changed[name].relative_error:.2e}",
         f"{changed[name].unmoved_share:.2%} unmoved")
        for name in worst[:_WORST]
    ]  # fmt: skip
    return [
        *lines,
        *aligned(rows, indent=4),
        report_line(outcome.output / RECORD_NAME),
        next_line(["lora-export", "export", "--base", outcome.output, "-o", "out"]),
    ]


def _verdict_line(found: MergedVerification) -> str:
    """Return the verdict with its figures, and how to get one if there is none."""
    if found.relative_l2 is None or found.tolerance is None:
        asked = found.reason != NOT_ASKED
        how = "" if asked else "; merge with --verify to compare"
        return f"{found.verdict}: {found.reason}{how}"
    effect = "" if found.effect is None else f", effect of the adapter {found.effect:.3g}"
    why = "" if found.verdict == "pass" else f"; {found.reason}"
    return (
        f"{found.verdict}: relative L2 error {found.relative_l2:.2e} to unmerged PEFT "
        f"(tolerance {found.tolerance:.0e}{effect}){why}"
    )
