"""``doctor``: the command, and the diagnosis as text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, option
from lora_export.cli.options import common_options
from lora_export.cli.text import aligned, size
from lora_export.core.errors import ParityError

if TYPE_CHECKING:
    from lora_export.runtime.doctor import Diagnosis
    from lora_export.runtime.machine import Machine

__all__ = ["doctor"]


@click.command("doctor", cls=Command, examples="lora-export doctor")
@option("--templates", section="Verification", is_flag=True,
        help="Also run a tiny model of every graph template that ships with lora-export, and "
        "compare it with torch's outputs. Exit code 5 where one differs.")  # fmt: skip
@common_options
def doctor(*, templates: bool, as_json: bool, quiet: bool) -> int:
    """Show the installed packages, what each missing one is needed for, and how to get it."""
    from lora_export.runtime.doctor import diagnose

    with Console(as_json=as_json, quiet=quiet) as console:
        diagnosis = diagnose()
        document, lines = asdict(diagnosis), _render(diagnosis)
        failed: tuple[str, ...] = ()
        if templates:
            from lora_export.runtime.template_check import check_templates

            found = check_templates(every=True)
            document["templates"], failed = asdict(found), found.failed
            lines.append("graph templates")
            lines.append(f"  {found.checked - len(failed)} of {found.templates} as torch has it")
            lines += [f"  {each}" for each in failed]
        console.finish(document, lines)
    return ParityError.exit_code if failed else 0


def _render(found: Diagnosis) -> list[str]:
    lines = [f"lora-export {found.lora_export}, Python {found.python}, {found.platform}"]
    there = [package for package in found.packages if package.installed]
    missing = [package for package in found.packages if not package.installed]
    lines.append("installed")
    lines += aligned((name, v) for package in there for name, v in package.installed.items())
    if missing:
        lines.append("missing")
        for package in missing:
            lines.append(f"  {package.module}")
            lines += aligned((("needed for", package.costs), ("get it", package.get)), indent=4)
    lines.append("runtimes")
    lines += aligned(
        (
            ("ONNX Runtime", ", ".join(found.execution_providers) or "none"),
            ("TensorRT", found.tensorrt or "none"),
            ("TensorRT-RTX", found.tensorrt_rtx or "none"),
            ("compiled module", "built" if found.compiled else "not built; NumPy replaces it"),
        )
    )
    lines += ["machine", *aligned(_machine_rows(found.machine))]
    lines += ["graph cache", *aligned(_cache_rows(found))]
    if found.untried:
        lines += ["newer than was tried", *(f"  {library}" for library in found.untried)]
    if found.problems:
        lines += ["problems", *(f"  {problem}" for problem in found.problems)]
    return lines


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    cpus = str(machine.cpus)
    if machine.cpus_usable != machine.cpus:
        cpus = f"{machine.cpus_usable} of {machine.cpus} usable"
    memory = f"{_size(machine.memory_available_bytes)} available of {_size(machine.memory_bytes)}"
    if machine.memory_limit_bytes is not None:
        memory += f", limited to {size(machine.memory_limit_bytes)} by its control group"
    rows = [("processors", cpus), ("memory", memory)]
    for gpu in machine.gpus:
        capability = f", compute capability {gpu.compute_capability}"
        rows.append(
            (
                "GPU",
                f"{gpu.name}, {_size(gpu.memory_bytes)}{capability * bool(gpu.compute_capability)}",
            )
        )
    if not machine.gpus:
        rows.append(("GPU", "no NVIDIA GPU found"))
    if machine.driver:
        rows.append(("driver", machine.driver))
    if machine.jetson:
        rows.append(("Jetson", machine.jetson))
    return rows


def _cache_rows(found: Diagnosis) -> list[tuple[str, str]]:
    if found.cache is None:
        return [("path", "cannot be read")]
    return [
        ("path", found.cache.path),
        ("graphs", f"{found.cache.graphs} in {size(found.cache.bytes)}"),
        ("free disk", _size(found.cache.free_bytes)),
    ]


def _size(count_bytes: int | None) -> str:
    return "unknown" if count_bytes is None else size(count_bytes)
