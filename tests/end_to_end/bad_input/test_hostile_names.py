"""Names that redraw a terminal, reverse a line or command a CI runner: nothing of them gets out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from lora_export.ondevice.printable import HINT_LIMIT, LINE_LIMIT, printable
from tests.cli.running import call, command
from tests.helpers.handmade import save_adapter, save_checkpoint, save_export, shapes_of_lora
from tests.helpers.showcase import save_showcase

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BAD: Final = (
    "\x1b[31mred\x1b[0m\n::error::stop\u202eevil\u2066\u200b\U000e0041\x9b2J\r\x07\u2028"
    "##[error]x [bold]y[/bold] `|<b>&\x7f" + "A" * 3000
)
SHOWN: Final = (
    r"\x1b[31mred\x1b[0m\n::error::stop\u202eevil\u2066\u200b\U000e0041\x9b2J\r\x07\u2028"
    r"#\x23[error]x [bold]y[/bold] `|<b>&\x7f"
)
_FOLDER: Final = "fo\x1b[31m\n::error::x\u202e"
_NAME: Final = BAD[:60]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with such a name that holds bases, adapters and exports with such texts."""
    root = tmp_path_factory.mktemp("hostile") / _FOLDER
    labels = {"id2label": {"0": BAD, "1": "b\n::error::"}, "_name_or_path": BAD}
    save_checkpoint(root / "base", **labels)
    save_checkpoint(root / "unknown", model_type=BAD, architectures=[BAD], **labels)
    save_adapter(root / "adapter", task_type=BAD, base_model_name_or_path=BAD)
    save_adapter(root / "ad\x1b[1m", base_model_name_or_path=BAD)
    save_adapter(root / "kind", peft_type=BAD)
    save_adapter(root / "target", target_modules=[BAD])
    strange = {f"base_model.model.{_NAME}.lora_A.weight": (2, 8)}
    save_adapter(root / "tensors", {**shapes_of_lora(), **strange})
    export = _with(
        save_export(root / "export"),
        lambda t: t["base"].update(source=BAD, model_type=BAD, model_class=BAD, labels=[BAD]),
        lambda t: t["adapters"]["a"].update(source=BAD, format=BAD, notes=[BAD]),
        lambda t: t.update(tool=BAD),
    )
    assert export.is_dir()
    _with(
        save_export(root / "named"),
        lambda t: t["adapters"].update({_NAME: t["adapters"].pop("a")}),
        lambda t: t["graphs"].update({_NAME: t["graphs"].pop("a")}),
    )
    _with(
        save_showcase(root / "report"),
        lambda t: t["base"].update(source=BAD, model_class=BAD, labels=[BAD]),
        lambda t: [each.update(source=BAD, notes=[BAD]) for each in t["adapters"].values()],
    )
    return root


def _with(export: Path, *changes: Callable[[dict[str, Any]], object]) -> Path:
    path = export / "lora_export.json"
    table = json.loads(path.read_text())
    for change in changes:
        change(table)
    path.write_text(json.dumps(table))
    return export


def _require_clean(text: str) -> None:
    assert printable(text, keep="\n") == text
    for line in text.split("\n"):
        assert not line.lstrip().startswith("::")
        assert "##[" not in line
    assert "This is a bug" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{root}/base"],
        ["inspect", "{root}/unknown"],
        ["inspect", "{root}/adapter"],
        ["inspect", "{root}/ad\x1b[1m"],
        ["inspect", "{root}/kind"],
        ["inspect", "{root}/target"],
        ["inspect", "{root}/tensors"],
        ["inspect", "{root}/export"],
        ["inspect", "{root}/named"],
        ["inspect", "{root}/base", "{root}/adapter"],
        ["inspect", "{root}/export", "{root}/adapter"],
        ["inspect", "{root}"],
        ["inspect", "{root}/nothing\x1b"],
        ["inspect", "--" + BAD],
        ["inspect", BAD, BAD, BAD],
        [BAD],
        ["remove", "{root}/export", BAD],
        ["remove", "{root}/named", "a"],
        ["merge", "--base", "{root}/base", "--adapter", "x={root}/adapter", "--out", "{new}"],
        ["merge", "--base", "{root}/base", "--adapter", "x={root}/kind", "--out", "{new}"],
        ["merge", "--base", "{root}/base", "--adapter", "x={root}/target", "--out", "{new}"],
        ["merge", "--base", "{root}/base", "--adapter", "x={root}/tensors", "--out", "{new}"],
        ["merge", "--base", "{root}/base", "--adapter", _NAME + "={root}/adapter",
         "--out", "{new}"],
        ["merge", "--base", "{root}/unknown", "--adapter", "x={root}/adapter", "--out", "{new}"],
        ["merge-and-build", "--base", "{root}/unknown", "--adapter", "{root}/adapter",
         "--out", "{new}"],
        ["merge-and-build", "--base", "{root}/base", "--adapter", "{root}/adapter",
         "--task", BAD, "--out", "{new}"],
        ["add", "{root}/export", "--adapter", "y={root}/adapter"],
        ["add", "{root}/export", "--adapter", _NAME + "={root}/adapter"],
        ["verify", "{root}/export"],
        ["verify", "{root}/named"],
        ["report", "{root}/report"],
        ["report", "{root}/named"],
        ["bench", "{root}/export"],
        ["bench", "{root}/export", "--length", BAD],
        ["generate", "{root}/export", "--prompt", BAD],
        ["build", "{root}/export", "--target", BAD],
        ["build", "{root}/export", "--target", "h100", "--dry-run"],
        ["refit", "{root}/export", "--target", "h100", "--adapter", BAD],
        ["preflight", "{root}/export", "--target", "jetson-orin"],
        ["preflight", "{root}/export", "--target", "jetson-orin", "--graph", BAD],
        ["bundle", "{root}/export", "--target", "jetson-orin", "-o", "{new}.tar"],
        ["bundle", "verify", "{root}/no\x1b.tar"],
        ["triton", "{root}/export", "--repository", "{new}"],
        ["triton", "check", "{root}"],
        ["triton", "remove", BAD, "--repository", "{root}"],
        ["analyze", "{root}/adapter"],
        ["analyze", "{root}/adapter", "{root}/ad\x1b[1m", "--figure", "{new}.svg"],
        ["analyze", "{root}/adapter", "--compress", "1"],
        ["adapter", "convert", "{root}/adapter", "--to", "peft", "--out", "{new}"],
        ["adapter", "convert", "{root}/adapter", "--to", BAD, "--out", "{new}"],
        ["doctor"],
    ],
    ids=lambda words: printable(" ".join(words), 60),
)  # fmt: skip
def test_nothing_hidden_and_no_command_is_printed(
    capsys: pytest.CaptureFixture[str],
    hostile: Path,
    tmp_path: Path,
    words: list[str],
    *,
    as_json: bool,
) -> None:
    places = {"root": hostile, "new": tmp_path / "n\x1be\nw\u202e"}
    given = [word.format(**places) if word is not BAD else word for word in words]
    done = call(capsys, *given, *(["--json"] if as_json else []))
    for text in (done.out, done.err):
        _require_clean(text)
    assert done.code in {0, 2, 3, 4, 7}
    if as_json and done.out:
        json.loads(done.out)
    elif not as_json:
        lines = [*done.out.split("\n"), *done.err.split("\n")]
        assert max(map(len, lines)) <= HINT_LIMIT
        assert sum(len(line) > LINE_LIMIT + 10 for line in lines) == 0
    for file in tmp_path.rglob("*.svg"):
        _require_clean(file.read_text())


def test_what_is_there_is_shown(capsys: pytest.CaptureFixture[str], hostile: Path) -> None:
    done = call(capsys, "inspect", hostile / "adapter")
    (line,) = [each for each in done.out.split("\n") if "format" in each]
    assert line.startswith(f"  format      peft, {SHOWN}AAA")
    assert "characters left out" in line
    shown = call(capsys, "inspect", hostile / "adapter", "--json").document
    assert shown["task_type"] == BAD


def test_remove_shows_the_texts_of_the_manifest_escaped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    export = _with(
        save_export(tmp_path / "ex\x1bport"),
        lambda t: t["base"].update(model_class=BAD, task=BAD),
    )
    done = call(capsys, "remove", export, "a")
    _require_clean(done.out + done.err)
    assert done.code == 0
    assert done.out.startswith(f"{tmp_path}/ex\\x1bport: ")
    assert f"\n  {SHOWN}" in done.out


def test_the_pages_hold_nothing_hidden(capsys: pytest.CaptureFixture[str], hostile: Path) -> None:
    assert call(capsys, "report", hostile / "report", "--quiet").code == 0
    for name in ("report.html", "report.md"):
        text = (hostile / "report" / "reports" / name).read_text()
        assert printable(text.replace("⚠\ufe0f", ""), keep="\n") == text.replace("⚠\ufe0f", "")
        assert "<b>" not in text
        assert "characters left out" in text


def test_annotations_are_the_only_commands(
    capsys: pytest.CaptureFixture[str], hostile: Path
) -> None:
    done = call(capsys, "report", hostile / "report", "--github", "--quiet")
    assert done.code == 0
    for line in filter(None, done.out.split("\n")):
        assert line.startswith(("::error title=", "::warning title="))
        assert printable(line) == line
        assert len(line) < LINE_LIMIT


def test_a_traceback_shows_nothing_hidden_either(hostile: Path) -> None:
    done = command("inspect", hostile / "kind", "--debug")
    assert done.code == 4
    assert "Traceback" in done.err
    assert printable(done.err, keep="\n") == done.err
