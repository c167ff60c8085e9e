"""Commands of the documentation are run, and print what the documentation shows.

Each page is run from top to bottom in a folder of its own, with a HOME of its own, without
credentials and without a network. The folder has what the pages name: the recipes, the checkpoint
of ``make model``, and tiny models under the names of real ones.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.pages import first_missing, read_blocks, run_page, untagged
from tests.helpers.quantized_bases import ADAPTER as QLORA
from tests.helpers.quantized_bases import LLAMA_NF4
from tools.docs_site.links import OUTSIDE

if TYPE_CHECKING:
    from tests.helpers.models import TinyModels

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / path for path in OUTSIDE),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MINILM = ROOT / "models/all-MiniLM-L6-v2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def named(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def runs(page: Path) -> bool:
    return any(block.kind.startswith("run") for block in read_blocks(page))


def marks(page: Path) -> list[pytest.MarkDecorator]:
    slow = any(block.kind == "run-slow" for block in read_blocks(page))
    return [pytest.mark.slow] if slow else []


@pytest.fixture(scope="session")
def shelf(tiny: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models and adapters, under the names that the pages use."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "models").mkdir()
    (folder / "adapters").mkdir()
    if MINILM.is_dir():
        (folder / "models" / MINILM.name).symlink_to(MINILM)
    roberta = folder / "roberta"
    shutil.copytree(tiny.base("roberta", "feature-extraction", tokenizer=True), roberta)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (roberta / "tokenizer_config.json").write_text(json.dumps(settings))
    llama = tiny.base("llama", "text-generation", tokenizer=True)
    made = {
        "models/roberta-base": roberta,
        "models/llama": llama,
        "models/t5": tiny.base("t5", "text2text-generation", tokenizer=True),
        "models/vit": tiny.base("vit", "image-feature-extraction"),
        "models/llama-nf4": LLAMA_NF4,
        "adapters/qlora": QLORA,
        "adapters/chat": tiny.adapter(llama, task="text-generation", labels_count=None),
        "adapters/sql": tiny.adapter(llama, task="text-generation", labels_count=None, seed=7),
    }
    for number, name in enumerate(("mnli", "anli", "sst2", "qqp")):
        made[f"adapters/{name}"] = tiny.adapter(roberta, seed=31 + number)
    made["adapters/summary"] = tiny.adapter(
        made["models/t5"], task="text2text-generation", labels_count=None
    )
    made["adapters/digits"] = tiny.adapter(
        made["models/vit"], task="image-classification", modules_to_save=["classifier"]
    )
    for name, source in made.items():
        (folder / name).symlink_to(source)
    rows = [{"text": f"w{n} w{n + 1} w{n + 2}", "label": n % 3} for n in range(3, 40)]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def desk(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type in: copies of links only, so that no page changes what another reads."""
    from huggingface_hub import constants

    folder = tmp_path / "desk"
    for part in ("models", "adapters"):
        (folder / part).mkdir(parents=True)
        for each in (shelf / part).iterdir():
            (folder / part / each.name).symlink_to(each.resolve())
    (folder / "dev.jsonl").symlink_to(shelf / "dev.jsonl")
    for recipe in (ROOT / "recipes").iterdir():
        (folder / "recipes" / recipe.name).mkdir(parents=True)
        for file in recipe.iterdir():
            (folder / "recipes" / recipe.name / file.name).symlink_to(file)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("HF_") and "TOKEN" in name]:
        monkeypatch.delenv(name)
    hub = home / "hub"
    snapshot = hub / "models--sentence-transformers--all-MiniLM-L6-v2"
    (snapshot / "snapshots").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "refs/main").write_text(COMMIT)
    if MINILM.is_dir():
        (snapshot / "snapshots" / COMMIT).symlink_to(MINILM)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # a user's session shows warnings; the texts are compared
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=named(page), marks=marks(page)) for page in PAGES if runs(page)],
)
def test_a_page_does_what_it_says(page: Path, desk: Path) -> None:
    if "MiniLM" in page.read_text("utf-8") and not MINILM.is_dir():
        pytest.skip("needs the checkpoint: make model")
    run_page(page, desk)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_each_block_says_whether_it_runs(page: Path) -> None:
    assert untagged(page) == []


def test_a_page_that_shows_something_else_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh run\necho one 1.5 s\necho two\n```\n```text output\none 2.5 s\ntwo\n```\n"
    )
    run_page(page, tmp_path)
    page.write_text("```sh run\necho one\necho two\n```\n```text output\ntwo\none\n```\n")
    with pytest.raises(AssertionError, match="not printed: one"):
        run_page(page, tmp_path)
    page.write_text("```sh run\nfalse\n```\n")
    with pytest.raises(AssertionError, match="exit code 1"):
        run_page(page, tmp_path)
    page.write_text("```sh run: exit 1\nfalse\n```\n")
    run_page(page, tmp_path)
    page.write_text("```sh run\nlora-export verify nowhere\n```\n")
    with pytest.raises(AssertionError, match="exit code 3"):
        run_page(page, tmp_path)


def test_blocks_of_a_page_share_names_and_files(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run: echo 7 > number -->\n```python run\nfrom pathlib import Path\n"
        "x = int(Path('number').read_text())\n```\n"
        "```yaml save: a/b.yaml\nkey: 1\n```\n"
        "```python run\nprint(x + 1, Path('a/b.yaml').read_text())\n```\n"
        "```text output\n8 key: 1\n```\n"
    )
    run_page(page, tmp_path)


def test_a_block_without_a_tag_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nls\n```\n```python not-run:\nx\n```\n```yaml\na: 1\n```\n")
    assert untagged(page) == [
        "page.md:1: says neither run nor not-run: why",
        "page.md:4: not-run without its reason or file",
    ]
    page.write_text("```sh ran\nls\n```\n```text outputs\nls\n```\n")
    assert len(untagged(page)) == 2


@pytest.mark.parametrize(
    ("shown", "printed", "missing"),
    [
        ("a\nc", "a\nb\nc", None),
        ("error 1.2e-07, pass", "  error 3.1e-06, pass", None),
        ("26 of 26 tensors", "25 of 26 tensors", "26 of 26 tensors"),
        ("took … s", "took 12 of 13 s", None),
        ("pass", "fail", "pass"),
    ],
)
def test_what_counts_as_shown(shown: str, printed: str, missing: str | None) -> None:
    assert first_missing(shown, printed) == missing
