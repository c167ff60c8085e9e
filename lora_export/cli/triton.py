"""``triton``, ``triton add``, ``triton remove`` and ``triton check``: the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lora_export.cli.console import Console, common_options
from lora_export.cli.text import size
from lora_export.core.errors import UsageError
from lora_export.core.files import user_path
from lora_export.core.modes import ServingMode

if TYPE_CHECKING:
    from lora_export.triton.repository import ModelRepository

__all__ = ["triton"]

_WRITE: Final = "write"
_DAMAGED: Final = 3


class _WithDefault(click.Group):
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
    context_settings={"ignore_unknown_options": True},
)  # fmt: skip
def triton() -> None:
    """Write, change and check model repositories of the Triton server.

    lora-export triton EXPORT --repository DIR writes the models of an export (the same as triton
    write). The commands add and remove change a repository that a server may be reading.
    """


_OPTIONS: Final[tuple[tuple[tuple[str, ...], dict[str, Any]], ...]] = (
    (("--repository",), {"help": "The model repository; made if absent."}),
    (("--name",), {"help": "What the models' names begin with; the export's folder."}),
    (("--backend",), {"type": click.Choice(["onnxruntime", "python", "tensorrt"]),
                      "help": "By default the one that fits the export."}),
    (("--way",), {"type": click.Choice([each.value for each in ServingMode]),
                  "help": "How the Python backend runs an adapter; as the export holds it."}),
    (("--adapter", "adapters"), {"multiple": True, "metavar": "NAME",
                                 "help": "An adapter to serve, or base; repeatable. All."}),
    (("--text/--no-text",), {"default": None, "help": "An ensemble that takes texts."}),
    (("--max-batch-size",), {"type": int, "help": "16."}),
    (("--max-queue-delay-us",), {"type": int, "help": "Wait for others to share a batch: 500."}),
    (("--preferred-batch-size", "preferred_batch_sizes"),
     {"type": int, "multiple": True, "help": "Run batches of this size at once; repeatable."}),
    (("--max-queue-size",), {"type": int, "help": "Refuse more waiting requests."}),
    (("--queue-timeout-us",), {"type": int, "help": "Refuse a request that waited so long."}),
    (("--instances",), {"type": int, "help": "Instances of each model: 1."}),
    (("--device",), {"type": click.Choice(["cpu", "gpu"]), "help": "Where they run."}),
    (("--gpu", "gpus"), {"type": int, "multiple": True, "help": "A GPU by number; repeatable."}),
    (("--threads",), {"type": int, "help": "Threads within an operator."}),
    (("--cache-bytes",), {"type": int, "help": "What loaded adapters may take, per instance."}),
    (("--response-cache/--no-response-cache",), {"default": None,
     "help": "An ensemble MODEL-cached that answers from the server's response cache."}),
    (("--warmup/--no-warmup",), {"default": None, "help": "Run golden inputs first; on."}),
    (("--versions",), {"help": "The newest so many, or all."}),
    (("--resource", "resources"), {"multiple": True, "metavar": "NAME=COUNT",
     "help": "A resource of the rate limiter; repeatable."}),
    (("--priority",), {"type": int, "help": "The priority there."}),
)  # fmt: skip
"""A flag for every key of the recipe's section."""


def _settings_options(command: Any) -> Any:
    for names, settings in reversed(_OPTIONS):
        command = click.option(*names, **settings)(command)
    return command


@triton.command(_WRITE)
@click.argument("export", type=click.Path(path_type=Path))
@click.option("--recipe", type=click.Path(path_type=Path),
              help="Take what flags do not say from its section triton.")  # fmt: skip
@_settings_options
@common_options
def write(*, export: Path, recipe: Path | None, as_json: bool, quiet: bool, **flags: Any) -> int:
    """Write the models of EXPORT into a repository, each whole or not at all."""
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
        msg = "it is not said where the repository is"
        raise UsageError(msg, hint="Add --repository DIR.")
    with Console(as_json=as_json, quiet=quiet) as console:
        repository = folder / user_path(spec.repository)
        done = write_triton(export, repository, spec, console)
        console.finish(done.as_json(), _lines(done))
    return 0


@triton.command("add")
@click.argument("export", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="ADAPTER...")
@click.option("--repository", required=True, type=click.Path(path_type=Path),
              help="The repository; a server may be reading it.")  # fmt: skip
@click.option("--name", help="Which models, where it has several of the base.")
@click.option("--replace", is_flag=True, help="Replace an adapter of the same name.")
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
    """Serve ADAPTERs that EXPORT holds (lora-export add) from a repository too, at once."""
    from lora_export.triton.live_changes import add_to_repository

    with Console(as_json=as_json, quiet=quiet) as console:
        done = add_to_repository(export, repository, names, name=name, replace=replace)
        _finish(console, done, "load")
    return 0


@triton.command("remove")
@click.argument("gone", metavar="ADAPTER")
@click.option("--repository", required=True, type=click.Path(path_type=Path),
              help="The repository; a server may be reading it.")  # fmt: skip
@click.option("--name", help="Which models, where it has several.")
@common_options
def remove(*, gone: str, repository: Path, name: str | None, as_json: bool, quiet: bool) -> int:
    """Serve ADAPTER no longer."""
    from lora_export.triton.live_changes import remove_from_repository

    with Console(as_json=as_json, quiet=quiet) as console:
        done = remove_from_repository(repository, gone, name=name)
        _finish(console, done, "unload")
    return 0


@triton.command("check")
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--server", metavar="URL", help="Compare with a running server too (its HTTP port).")
@common_options
def check(*, repository: Path, server: str | None, as_json: bool, quiet: bool) -> int:
    """Check the models of REPOSITORY: against Triton's schema, their files and their graphs.

    Exit code 3 where something is wrong.
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
    return [
        f"{done.repository}: {', '.join(done.models)} ({done.backend})",
        f"  adapters: {', '.join(done.adapters)}",
        f"  disk: {size(done.own_bytes)}, and {size(done.linked_bytes)} that lie in the export",
        f"  memory: about {size(done.memory_bytes)}",
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
        msg = f"--versions: {text!r} is no number, no list of them and not 'all'"
        raise click.UsageError(msg) from error


def _resource(text: str) -> tuple[str, int]:
    name, separator, count = text.partition("=")
    if not (name and separator and count.isascii() and count.isdigit()):
        msg = f"--resource: {text!r} is not NAME=COUNT"
        raise click.UsageError(msg)
    return name, int(count)
