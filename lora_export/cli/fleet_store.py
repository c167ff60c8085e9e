"""``fleet ls``, ``fleet diff`` and ``fleet gc``: the commands that look at a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import Console
from lora_export.cli.help_format import Command, argument, option
from lora_export.cli.options import common_options
from lora_export.cli.text import aligned, first_few, size
from lora_export.core.errors import InputError

if TYPE_CHECKING:
    from lora_export.core.progress import Progress
    from lora_export.fleet.fleet_plan import Plan

__all__ = ["diff", "gc", "ls", "planned"]

_YAML: Final = (".yaml", ".yml")
_PATH: Final = click.Path(path_type=Path)


def planned(file: Path, console: Progress) -> Plan:
    """Return the plan in a file, or that of the fleet in it.

    Raises:
        LoraExportError: See the class of the error.
    """
    from lora_export.commands.fleet.expand import plan_fleet
    from lora_export.commands.fleet.spec import load_fleet
    from lora_export.fleet.fleet_plan import read_plan

    if file.suffix in _YAML:
        return plan_fleet(load_fleet(file), console)
    if file.is_dir():
        msg = f"{str(file)!r} is a directory"
        raise InputError(msg, hint="Give fleet.yaml, or a plan that was made of it.")
    return read_plan(file)


@click.command("ls", cls=Command, examples="lora-export fleet ls out")
@argument("store", "The store of a fleet: a directory or a URL.")
@common_options
def ls(*, store: str, as_json: bool, quiet: bool) -> int:
    """List what a store holds; with --json also what each was made of, and how."""
    from lora_export.commands.fleet.inventory import inventory

    with Console(as_json=as_json, quiet=quiet) as console:
        table = inventory(store)
        rows = [["artifact", "adapter", "made by", "verdict", "size"]]
        rows += [
            [
                each["artifact"], each["adapter"] or "", each["id"] or "no row is known",
                each["verdict"] or ("" if each["status"] == "done" else each["status"]),
                size(each["bytes"]) if each["bytes"] else "",
            ]
            for each in table["artifacts"]
        ]  # fmt: skip
        lines = aligned(rows) if table["artifacts"] else [f"{store}: nothing"]
        console.finish(table, [*lines, f"{len(table['artifacts'])} in {size(table['bytes'])}"])
    return 0


@click.command(
    "diff",
    cls=Command,
    examples="""
lora-export fleet diff fleet.yaml
lora-export fleet diff yesterday.json plan.json
""",
)
@argument("before", "A fleet, a plan, or the store of a fleet that was run.", metavar="BEFORE")
@argument("after", "What it is compared with; without it, a plan is compared with its store.",
          metavar="AFTER", required=False)  # fmt: skip
@common_options
def diff(*, before: str, after: str | None, as_json: bool, quiet: bool) -> int:
    """Compare two plans or runs, or a plan with what its store holds."""
    from lora_export.commands.fleet.inventory import (
        compared_with_store,
        difference,
        state_of_plan,
        state_of_store,
    )

    def state(place: str) -> dict[str, dict[str, Any]]:
        if _is_store(place):
            return state_of_store(place)
        return state_of_plan(planned(Path(place), console))

    with Console(as_json=as_json, quiet=quiet) as console:
        if after is not None:
            table = difference(state(before), state(after))
        elif _is_store(before):
            msg = f"{before!r} is a store: there is nothing to compare it with"
            raise click.UsageError(f"{msg}; give a plan too: lora-export fleet diff PLAN STORE")
        else:
            table = compared_with_store(planned(Path(before), console))
        console.finish(table, _diff_lines(table))
    return 0


@click.command(
    "gc",
    cls=Command,
    examples="""
lora-export fleet gc fleet.yaml
lora-export fleet gc fleet.yaml --yes
""",
)
@argument("plan_file", "The fleet, or its whole plan: what it refers to stays.", metavar="PLAN",
          type=_PATH)  # fmt: skip
@option("--yes", section="Output", is_flag=True,
        help="Delete; without it, what would be deleted is listed.")  # fmt: skip
@common_options
def gc(*, plan_file: Path, yes: bool, as_json: bool, quiet: bool) -> int:
    """Delete what the store of a fleet holds and the fleet does not refer to."""
    from lora_export.commands.fleet.inventory import collect

    with Console(as_json=as_json, quiet=quiet) as console:
        table = collect(planned(plan_file, console), console, delete=yes)
        lines = _unreferenced_lines(table)
        done = "deleted" if yes else "would be deleted; to delete it: --yes"
        total = sum(len(table[kind]) for kind in ("exports", "adapters", "files", "artifacts"))
        total += table["blobs"]
        lines.append(f"{total} things, {size(table['bytes'])} besides adapters: {done}"
                     if total else f"{table['store']}: nothing to delete")  # fmt: skip
        console.finish(table, lines)
    return 0


def _is_store(place: str) -> bool:
    from lora_export.fleet.store.url import is_url

    return is_url(place) or Path(place).is_dir()


def _diff_lines(table: dict[str, Any]) -> list[str]:
    from lora_export.fleet.run_changes import CHANGES

    lines = [
        f"{CHANGES[kind]} ({len(names)}): {', '.join(first_few(names))}"
        for kind, names in table["changes"].items()
    ]
    if table.get("to_make"):
        lines.append(f"to make ({len(table['to_make'])}): {', '.join(first_few(table['to_make']))}")
    if "unreferenced" in table:
        lines += _unreferenced_lines(table["unreferenced"])
    return lines or ["no difference"]


def _unreferenced_lines(table: dict[str, Any]) -> list[str]:
    adapters = [f"{each['adapter']} in {each['export']}" for each in table["adapters"]]
    found = {
        "exports": table["exports"], "adapters": adapters, "files": table["files"],
        "artifacts": [each["name"] for each in table["artifacts"]],
    }  # fmt: skip
    lines = [
        f"{kind} that the fleet does not refer to ({len(names)}): {', '.join(first_few(names))}"
        for kind, names in found.items()
        if names
    ]
    if table["blobs"]:
        lines.append(f"contents that nothing else needs: {table['blobs']}")
    return lines
