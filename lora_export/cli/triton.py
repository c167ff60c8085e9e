"""``triton``, ``triton add``, ``triton remove`` and ``triton check``: the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.closing import next_line
from lora_export.cli.console import Console
from lora_export.cli.help_format import Group, argument, option
from lora_export.cli.options import common_options
from lora_export.cli.text import size
from lora_export.core.errors import UsageError
from lora_export.core.files import user_path
from lora_export.core.modes import ServingMode

if TYPE_CHECKING:
    from lora_export.triton.repository import ModelRepository

__all__ = ["triton"]

_WRITE: Final = "write"
_DAMAGED: Final = 3


class _WithDefault(Group):
    """A group whose first argument may be an export, which then is written."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, _WRITE)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        given = args if args and args[0] in self.commands else [_WRITE, *args]
        return super().resolve_command(ctx, given)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else "--help"
        if first.startswith("-") and first not in {"-h", "--help"}:
            args = [_WRITE, *args]  # options before the export
        return super().parse_args(ctx, args)


@click.group(
    "triton", cls=_WithDefault, subcommand_metavar="EXPORT | COMMAND [ARGS]...",
    context_settings={"ignore_unknown_options": True}, examples="""
lora-export triton out --repository models
lora-export triton check models
lora-export triton add out mine --repository models
""",
)  # fmt: skip
def triton() -> None:
    """Write, change and check model repositories of Triton Inference Server.

    triton EXPORT is short for triton write EXPORT; its flags: lora-export triton write --help.
    add and remove change a repository that a server may be reading.
    """


_OPTIONS: Final[tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...]] = (
    (("--repository",), "Output", {
        "metavar": "DIR", "help": "The model repository; created if it does not exist."}),
    (("--hardlink/--no-hardlink",), "Output", {
        "default": None, "help": "Link files of the export instead of copying them.",
        "default_text": "--no-hardlink"}),
    (("--name",), "Models", {
        "metavar": "NAME", "help": "The prefix of the models' names.",
        "default_text": "the export's name"}),
    (("--backend",), "Models", {
        "type": click.Choice(["onnxruntime", "python", "tensorrt"]), "metavar": "BACKEND",
        "help": "The backend.", "default_text": "the one that fits the export"}),
    (("--way",), "Models", {
        "type": click.Choice([each.value for each in ServingMode]), "metavar": "MODE",
        "help": "The mode in which the Python backend runs an adapter.",
        "default_text": "the mode of the export"}),
    (("--adapter", "adapters"), "Models", {
        "multiple": True, "metavar": "NAME",
        "help": "An adapter to serve, or base.", "default_text": "all"}),
    (("--text/--no-text",), "Models", {
        "default": None, "help": "Add an ensemble that takes texts.",
        "default_text": "--no-text"}),
    (("--versions",), "Models", {
        "metavar": "N|N,…|all", "help": "The versions to serve: the newest N, these, or all.",
        "default_text": "1"}),
    (("--warmup/--no-warmup",), "Models", {
        "default": None, "help": "Run stored inputs before a model is ready.",
        "default_text": "--warmup"}),
    (("--response-cache/--no-response-cache",), "Models", {
        "default": None,
        "help": "Add an ensemble MODEL-cached that uses the server's response cache.",
        "default_text": "--no-response-cache"}),
    (("--max-batch-size",), "Server", {
        "type": int, "help": "The largest batch.", "default_text": "16"}),
    (("--preferred-batch-size", "preferred_batch_sizes"), "Server", {
        "type": int, "multiple": True, "help": "Run batches of this size without waiting."}),
    (("--max-queue-delay-us",), "Server", {
        "type": int, "help": "The most microseconds that a request waits for others.",
        "default_text": "500"}),
    (("--max-queue-size",), "Server", {
        "type": int, "help": "The most requests that may wait.", "default_text": "no limit"}),
    (("--queue-timeout-us",), "Server", {
        "type": int, "help": "Refuse a request that has waited this long.",
        "default_text": "no limit"}),
    (("--instances",), "Server", {
        "type": int, "help": "Instances of each model.", "default_text": "1"}),
    (("--device",), "Server", {
        "type": click.Choice(["cpu", "gpu"]), "help": "The device of the instances.",
        "default_text": "the backend's choice"}),
    (("--gpu", "gpus"), "Server", {
        "type": int, "multiple": True, "help": "A GPU, by number.", "default_text": "all"}),
    (("--threads",), "Server", {
        "type": int, "help": "Threads within an operator.",
        "default_text": "ONNX Runtime's choice"}),
    (("--cache-bytes",), "Server", {
        "type": int, "help": "The most bytes of loaded adapters, in each instance.",
        "default_text": "1 GiB"}),
    (("--resource", "resources"), "Server", {
        "multiple": True, "metavar": "NAME=COUNT", "help": "A resource of the rate limiter."}),
    (("--priority",), "Server", {
        "type": int, "help": "The priority in the rate limiter.", "default_text": "none"}),
)  # fmt: skip
"""A flag for every key of the recipe's section, and the section of the help."""


def _settings_options(command: Any) -> Any:
    for names, section, settings in reversed(_OPTIONS):
        command = option(*names, section=section, **settings)(command)
    return command


@triton.command(
    _WRITE,
    examples="""
lora-export triton write out --repository models
lora-export triton write out --repository models --text --device gpu
""",
)
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@option("--recipe", section="Input", type=click.Path(path_type=Path), metavar="FILE",
        help="A recipe with the section triton; flags win over it.")  # fmt: skip
@_settings_options
@common_options
def write(*, export: Path, recipe: Path | None, as_json: bool, quiet: bool, **flags: Any) -> int:
    """Write the models of an export into a model repository (the default command)."""
    from lora_export.commands.recipe import load_recipe, make_triton
    from lora_export.commands.triton import write_triton

    given = {key: value for key, value in flags.items() if value not in (None, ())}
    if "versions" in given:
        given["versions"] = _versions(given["versions"])
    if "resources" in given:
        given["resources"] = dict(_resource(text) for text in given["resources"])
    given = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    spec, folder = make_triton(given), Path()
    if recipe is not None:
        whole = load_recipe(recipe, {"triton": given})
        spec = whole.triton or spec
        folder = Path() if "repository" in given else whole.folder
    if spec.repository is None:
        msg = "the model repository is missing"
        raise UsageError(msg, hint="Add --repository DIR.")
    with Console(as_json=as_json, quiet=quiet) as console:
        repository = folder / user_path(spec.repository)
        done = write_triton(export, repository, spec, console)
        console.finish(done.as_json(), _lines(done))
    return 0


@triton.command("add", examples="lora-export triton add out mine --repository models")
@argument("export", "The export directory.", type=click.Path(path_type=Path))
@argument("names", "An adapter of the export.", nargs=-1, metavar="ADAPTER...")
@option("--repository", section="Output", required=True, type=click.Path(path_type=Path),
        metavar="DIR", help="The model repository; a server may be reading it.")  # fmt: skip
@option("--name", section="Models", metavar="NAME",
        help="The prefix of the models, if the base has several.")  # fmt: skip
@option("--replace", section="Models", is_flag=True,
        help="Replace an adapter of the same name.")  # fmt: skip
@common_options
def add(
    *,
    export: Path,
    names: tuple[str, ...],
    repository: Path,
    name: str | None,
    replace: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Add adapters of an export to a model repository."""
    from lora_export.triton.live_changes import add_to_repository

    with Console(as_json=as_json, quiet=quiet) as console:
        done = add_to_repository(export, repository, names, name=name, replace=replace)
        _finish(console, done, "load")
    return 0


@triton.command("remove", examples="lora-export triton remove mine --repository models")
@argument("gone", "The adapter to remove.", metavar="ADAPTER")
@option("--repository", section="Output", required=True, type=click.Path(path_type=Path),
        metavar="DIR", help="The model repository; a server may be reading it.")  # fmt: skip
@option("--name", section="Models", metavar="NAME",
        help="The prefix of the models, if there are several.")  # fmt: skip
@common_options
def remove(*, gone: str, repository: Path, name: str | None, as_json: bool, quiet: bool) -> int:
    """Remove an adapter from a model repository."""
    from lora_export.triton.live_changes import remove_from_repository

    with Console(as_json=as_json, quiet=quiet) as console:
        done = remove_from_repository(repository, gone, name=name)
        _finish(console, done, "unload")
    return 0


@triton.command(
    "check",
    examples="""
lora-export triton check models
lora-export triton check models --server localhost:8000
""",
)
@argument("repository", "The model repository.", type=click.Path(path_type=Path))
@option("--server", section="Input", metavar="URL",
        help="Also compare with a running server (its HTTP port).")  # fmt: skip
@common_options
def check(*, repository: Path, server: str | None, as_json: bool, quiet: bool) -> int:
    """Check a model repository against Triton's schema, its files and its graphs.

    The exit code is 3 if something is wrong.
    """
    from lora_export.triton.check_repository import check_repository
    from lora_export.triton.check_server import server_problems

    with Console(as_json=as_json, quiet=quiet) as console:
        problems = check_repository(repository)
        if server is not None:
            for model, found in server_problems(server, repository, list(problems)).items():
                problems[model] += found
        count = sum(map(len, problems.values()))
        lines = [f"{name}: {line}" for name, found in problems.items() for line in found or ["ok"]]
        document = {"repository": str(repository), "problems": count, "models": problems}
        console.finish(document, lines)
    return _DAMAGED if count else 0


def _lines(done: ModelRepository) -> list[str]:
    linked = f", and {size(done.linked_bytes)} linked to the export" if done.linked_bytes else ""
    return [
        f"{done.repository}: {', '.join(done.models)} ({done.backend})",
        f"  adapters: {', '.join(done.adapters)}",
        f"  disk: {size(done.own_bytes)}{linked}",
        f"  memory: about {size(done.memory_bytes)}",
        next_line(["lora-export", "triton", "check", done.repository]),
    ]


def _finish(console: Console, done: Any, verb: str) -> None:
    lines = [f"{done.model}: {', '.join(done.adapters) or 'no adapter'}"]
    if done.reload:
        lines += [
            f"  in explicit mode: curl -X POST SERVER/v2/repository/models/{each}/{verb}"
            for each in done.models
        ]
    document = {
        "model": done.model,
        "models": list(done.models),
        "adapters": list(done.adapters),
        "reload": done.reload,
    }
    console.finish(document, lines)


def _versions(text: str) -> int | str | list[int]:
    if text == "all":
        return text
    try:
        return [int(each) for each in text.split(",")] if "," in text else int(text)
    except ValueError as error:
        msg = f"--versions: {text!r} is not a number, a list of numbers or 'all'"
        raise click.UsageError(msg) from error


def _resource(text: str) -> tuple[str, int]:
    name, separator, count = text.partition("=")
    if not (name and separator and count.isascii() and count.isdigit()):
        msg = f"--resource: {text!r} is not NAME=COUNT"
        raise click.UsageError(msg)
    return name, int(count)
