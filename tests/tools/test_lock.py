"""The lock files agree with pyproject.toml and constraints.txt, and every row has its hashes."""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import (
    DOWNLOADS,
    ENVIRONMENTS,
    EXTRAS,
    LOCKS,
    ROOT,
    TORCH_CPU_SHA256,
    Row,
    for_cpu,
    read_lock,
)

if TYPE_CHECKING:
    from pathlib import Path

WHOLE, CORE = (ROOT / name for name in LOCKS)
FOLDER = ROOT / "tools/locks"
FILES = [WHOLE, CORE, *sorted(FOLDER.glob("*.lock"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]
IDS = [f"{each['python_version']}-{each['platform_machine']}" for each in ENVIRONMENTS]


def installed(path: Path, environment: dict[str, str]) -> dict[str, str]:
    rows = [row for row in read_lock(path) if row.applies(environment)]
    versions = {canonicalize_name(row.name): row.version for row in rows}
    assert len(versions) == len(rows), "two versions of one package"
    return versions


def required(*extras: str) -> list[Requirement]:
    named = PROJECT["project"]["optional-dependencies"]
    rows = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    return [Requirement(row) for row in (*rows, *(row for each in extras for row in named[each]))]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=IDS)
@pytest.mark.parametrize(("path", "extras"), [(WHOLE, EXTRAS), (CORE, ())], ids=LOCKS)
def test_each_dependency_is_locked_in_a_version_that_it_allows(path, extras, environment):
    versions = installed(path, environment)
    for requirement in required(*extras):
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in {path.name}: make lock"
        assert requirement.specifier.contains(version), f"{requirement}, locked {version}"


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=IDS)
@pytest.mark.parametrize("path", [WHOLE, CORE], ids=LOCKS)
def test_the_versions_are_those_of_the_constraints(path, environment):
    versions = installed(path, environment)
    pinned = {
        canonicalize_name(pin.name): pin
        for pin in PINS
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    for name, version in versions.items():
        if name in pinned:
            assert pinned[name].specifier.contains(version), f"{name}: make lock"
        else:
            assert re.match(r"nvidia-|cuda-|triton$", name), f"{name} is not in constraints.txt"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_lock_file_is_rows_with_hashes_and_nothing_else(path):
    assert all(len(set(row.hashes)) == len(row.hashes) for row in read_lock(path))
    text = path.read_text("utf-8")
    assert not re.search(r"://|\s@\s|^-", text, re.MULTILINE), "an address, or an option for pip"
    assert not re.search(r"\b(?:[\w-]+\.)+(?:org|com|io|net)\b", text), "a host"


def test_what_the_tools_download_is_locked():
    assert {path.stem for path in FOLDER.glob("*.lock")} == set(DOWNLOADS)
    for name, requirements in DOWNLOADS.items():
        rows = {row.name: row.version for row in read_lock(FOLDER / f"{name}.lock")}
        for each in requirements:
            asked, _, version = each.partition(";")[0].strip().partition("==")
            package = asked.partition("[")[0]
            assert rows[package] == version if version else package in rows


def test_each_package_of_npm_has_its_hash():
    folder = FOLDER / "transformers-js"
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert locked.pop("")["dependencies"] == wanted
    assert locked["node_modules/@huggingface/transformers"]["version"] in wanted.values()
    for name, row in locked.items():
        assert row["integrity"].startswith("sha512-"), name
        assert "resolved" not in row, "an address"


def test_the_core_is_a_part_of_the_whole():
    whole = {(row.name, row.version): row.hashes for row in read_lock(WHOLE)}
    assert all(whole[row.name, row.version] == row.hashes for row in read_lock(CORE))


def test_a_cpu_build_of_torch_needs_no_cuda():
    whole, rows = read_lock(WHOLE), for_cpu(read_lock(WHOLE))
    (torch,) = (row for row in rows if row.name == "torch")
    assert torch.version.endswith("+cpu")
    builds = product(("cp311", "cp312", "cp313"), ("x86_64", "aarch64"))
    keys = {f"{torch.version}-{python}-{machine}" for python, machine in builds}
    assert keys <= set(TORCH_CPU_SHA256)
    left_out = {row.name for row in whole} - {row.name for row in rows}
    assert all(re.match(r"nvidia-|cuda-|triton$", name) for name in left_out)
    assert "nvidia-ml-py" in {row.name for row in rows}


def test_a_new_torch_without_its_cpu_builds_is_an_error():
    with pytest.raises(ValueError, match=r"no build of torch 9\.0\.0\+cpu"):
        for_cpu([Row("torch", "9.0.0", "", ("0" * 64,))])


@pytest.mark.parametrize("line", ["numpy==1.0", "numpy>=1.0 --hash=sha256:" + "0" * 64])
def test_a_row_without_a_hash_or_an_exact_version_is_refused(tmp_path, line):
    file = tmp_path / "a.lock"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match="is no exact version with hashes"):
        read_lock(file)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda f: f.name
)
def test_an_image_installs_only_what_is_locked(file):
    text = file.read_text("utf-8").replace("\\\n", " ")
    for command in re.findall(r"pip install\b([^&]*)", text):
        hashed = "--require-hashes" in command and re.search(
            r"-r /src/requirements\S*\.lock", command
        )
        assert hashed or re.search(r"--no-deps --no-build-isolation (-e )?/src\s", command), command


def test_ci_installs_the_lock_file():
    assert "make test-lock" in (ROOT / ".ci/run").read_text("utf-8")
    target = (
        (ROOT / "Makefile").read_text("utf-8").partition("\ntest-lock:")[2].partition("\n\n")[0]
    )
    assert target.count("--require-hashes") == 2
    assert "--no-deps --no-build-isolation ." in target
