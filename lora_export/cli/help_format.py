"""Help in sections: the classes of commands, options and arguments, and how they are printed."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SECTIONS", "Command", "Group", "Option", "argument", "option"]

SECTIONS: Final = (
    "Input",
    "Adapters",
    "Combining adapters",
    "Graph",
    "Quantization",
    "Verification",
    "Measurement",
    "Planning",
    "Engine",
    "Models",
    "Server",
    "Gate",
    "Output",
    "General",
)
"""The sections of options, in the order in which a help shows them."""

_MOST_COLUMNS: Final = 100
_LONG: Final = 1000
_MOST_METAVAR: Final = 26
"""Longer choices are listed in the text of their option."""
_MOST_NAMES: Final = 26
"""The width of the column of names; a longer name has a line of its own."""
_UNBROKEN: Final = "\u2011"
"""A hyphen at which no line is broken, so that names can be copied."""
_TYPES: Final = {"integer": "N", "integer range": "N", "float": "NUMBER", "float range": "NUMBER"}


class Option(click.Option):
    """An option with a section, and a default that may be known elsewhere.

    Args:
        args: As `click.Option`.
        section: One of `SECTIONS`.
        default_text: The default in words, where it depends on other things.
        settings: As `click.Option`.
    """

    def __init__(
        self,
        *args: Any,
        section: str = "General",
        default_text: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.section = section
        self.default_text = default_text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:  # noqa: ARG002
        """Return the names with their value, and the explanation with default and choices."""
        if self.hidden:
            return None
        values = _values(self)
        shown = "|".join(values)
        listed = bool(self.metavar) or len(shown) > _MOST_METAVAR
        text = self.help or ""
        if values and listed:
            text = f"{text} One of: {', '.join(values)}."
        default = self.default_text or _default(self)
        marks = (
            "required" if self.required else None,
            "repeatable" if self.multiple else None,
            f"default: {default}" if default else None,
        )
        extra = "; ".join(mark for mark in marks if mark)
        explanation = " ".join(part for part in (text, f"[{extra}]" if extra else "") if part)
        return _names(self, shown if values and not listed else None), explanation


class Argument(click.Argument):
    """A positional argument with an explanation."""

    def __init__(self, *args: Any, explanation: str = "", **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.explanation = explanation

    @property
    def shown_name(self) -> str:
        """The name that the usage line shows, without brackets."""
        return (self.metavar or (self.name or "").upper()).removesuffix("...")


class Command(click.Command):
    """A command whose help has sections, and examples at the end.

    Args:
        args: As `click.Command`.
        examples: Lines that can be pasted; a line that starts with ``#`` explains the next.
        settings: As `click.Command`.
    """

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*args, **_wider(settings))
        self.examples = examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, text, arguments, options by section, and examples."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        _write_arguments(self.get_params(ctx), formatter)
        _write_options(self.get_params(ctx), ctx, formatter)
        _write_examples(self.examples, formatter)


class Group(click.Group):
    """A group of commands whose help ends with examples; see `Command`."""

    command_class = Command

    def __init__(self, *args: Any, examples: str = "", **settings: Any) -> None:
        super().__init__(*args, **_wider(settings))
        self.examples = examples

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, text, commands, options and examples."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_commands(ctx, formatter)
        _write_options(self.get_params(ctx), ctx, formatter)
        _write_examples(self.examples, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with the first sentence of its help, however long."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, each.get_short_help_str(_LONG)) for name, each in found if each is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def option(
    *names: str, section: str, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds an `Option`."""
    assert section in SECTIONS, section  # noqa: S101  (the sections are ours)
    return click.option(*names, cls=Option, section=section, **settings)


def argument(
    name: str, explanation: str, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds an `Argument`."""
    return click.argument(name, cls=Argument, explanation=explanation, **settings)


def _wider(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a command whose help may fill a terminal that is wider than 80."""
    context = {"max_content_width": _MOST_COLUMNS, **(settings.get("context_settings") or {})}
    return {**settings, "context_settings": context}


def _names(given: Option, values: str | None) -> str:
    """Return ``-o, --out FILE`` or ``--cache / --no-cache``."""
    short_first = sorted(given.opts, key=lambda name: name.startswith("--"))
    names = ", ".join(short_first)
    if given.secondary_opts:
        return f"{names} / {', '.join(given.secondary_opts)}"
    if given.is_flag or given.count:
        return names
    return f"{names} {given.metavar or values or _type_name(given)}"


def _type_name(given: Option) -> str:
    if _values(given):
        return (given.name or "value").upper()
    if isinstance(given.type, click.Path):
        return "PATH"
    return _TYPES.get(given.type.name, "TEXT")


def _values(given: Option) -> Sequence[str]:
    """Return the values that an option can have, where they are few enough to be listed."""
    return tuple(str(each) for each in getattr(given.type, "choices", ()))


def _default(given: Option) -> str | None:
    """Return the default as text: of values, not of flags."""
    value = given.default
    if given.is_flag or isinstance(value, bool):
        return None
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or None
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, (int, str)) and value != "" else None


def _write_arguments(given: Sequence[click.Parameter], formatter: click.HelpFormatter) -> None:
    rows = [
        (each.shown_name, each.explanation)
        for each in given
        if isinstance(each, Argument) and each.explanation
    ]
    _write_rows("Arguments", rows, formatter)


def _write_options(
    given: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    rows: dict[str, list[tuple[str, str]]] = {name: [] for name in SECTIONS}
    for each in given:
        record = None if isinstance(each, click.Argument) else each.get_help_record(ctx)
        if record is not None:
            rows[getattr(each, "section", "General")].append(record)
    shown = {name: records for name, records in rows.items() if records}
    for name, records in shown.items():
        _write_rows("Options" if len(shown) == 1 else name, records, formatter)


def _write_rows(
    title: str, rows: Sequence[tuple[str, str]], formatter: click.HelpFormatter
) -> None:
    """Write names and texts in two columns, which are as wide in every section."""
    if not rows:
        return
    padded = [(f"{name:{_MOST_NAMES}}", text.replace("-", _UNBROKEN)) for name, text in rows]
    start = len(formatter.buffer)
    with formatter.section(title):
        formatter.write_dl(padded, col_max=_MOST_NAMES)
    lines = "".join(formatter.buffer[start:]).replace(_UNBROKEN, "-").split("\n")
    formatter.buffer[start:] = ["\n".join(line.rstrip() for line in lines)]


def _write_examples(examples: str, formatter: click.HelpFormatter) -> None:
    if examples:
        with formatter.section("Examples"):
            for line in inspect.cleandoc(examples).split("\n"):
                formatter.write(f"{'':>{formatter.current_indent}}{line}".rstrip() + "\n")
