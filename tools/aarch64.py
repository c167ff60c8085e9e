"""A bundle's entry point inside an emulated aarch64 userland, and the light core's wheels for it.

    python -m tools.aarch64 FOLDER BUNDLE…

Needs Debian's apt and dpkg, a network, and no root: the packages are unpacked, not installed.

1. qemu-aarch64-static, from the PATH or from Debian's package.
2. Python of Debian's arm64 packages, resolved by an apt with a state of its own.
3. NumPy and ONNX Runtime as aarch64 wheels, and nothing else: neither torch nor this project.
4. Each bundle, unpacked by `tar`, verified by its ``run.py``.
5. requirements-core.lock, for aarch64 on Python 3.10 and 3.12, wheels only.

What is downloaded stays in FOLDER. The last lines are a summary; the exit code is 1 where something
is not as it should be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Final

from tools.locked_download import download

ROOT: Final = Path(__file__).resolve().parents[1]
WHEELS: Final = "aarch64"
"""The lock file of NumPy's oldest wheel for Debian's Python 3.11, and of an ONNX Runtime that runs
under qemu 7."""

PACKAGES: Final = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PLATFORMS: Final = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
PYTHONS: Final = ("3.10", "3.12")


def run(*command: str | Path, **settings: object) -> str:
    """Run a command; return what it prints, or end with what it says."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(each) for each in command], text=True, capture_output=True, check=False, **settings
    )
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    printed: str = done.stdout
    return printed


def find_qemu(folder: Path) -> Path:
    """Return the emulator, unpacked from Debian's package where it is not installed."""
    if installed := shutil.which("qemu-aarch64-static"):
        return Path(installed)
    unpacked = folder / "qemu"
    program = unpacked / "usr/bin/qemu-aarch64-static"
    if not program.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            run("apt-get", "-o", "APT::Sandbox::User=root", "download", "qemu-user-static",
                cwd=temporary)  # fmt: skip
            (package,) = Path(temporary).glob("*.deb")
            run("dpkg-deb", "-x", package, unpacked)
    return program


def make_userland(folder: Path) -> Path:
    """Return a folder with the arm64 packages of Debian that Python needs, unpacked."""
    root = folder / "root"
    if (root / ".complete").is_file():
        return root
    shutil.rmtree(root, ignore_errors=True)
    state = folder / "apt"
    for each in ("state/lists/partial", "cache/archives/partial"):
        (state / each).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    apt = (
        "apt-get", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64",
        "-o", f"Dir::State={state / 'state'}", "-o", f"Dir::State::status={state / 'status'}",
        "-o", f"Dir::Cache={state / 'cache'}", "-o", "APT::Sandbox::User=root",
        "-o", "Debug::NoLocking=1",
    )  # fmt: skip
    run(*apt, "update")
    run(*apt, "install", "-y", "--download-only", "--no-install-recommends", *PACKAGES)
    for package in sorted((state / "cache/archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, root)
    (root / ".complete").touch()
    return root


def fetch_wheels(folder: Path) -> Path:
    """Return a folder with the packages that the entry point may import."""
    site = folder / "site"
    marker = site / ".complete"
    wanted = (ROOT / "tools/locks" / f"{WHEELS}.lock").read_text("utf-8")
    if marker.is_file() and marker.read_text("utf-8") == wanted:
        return site
    shutil.rmtree(site, ignore_errors=True)
    platforms = [flag for each in PLATFORMS for flag in ("--platform", each)]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        options = ("--only-binary=:all:", "--python-version", "3.11", *platforms)
        for wheel in download(WHEELS, Path(temporary), *options):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    marker.write_text(wanted, "utf-8")
    return site


def verify(bundle: Path, python: list[str | Path], site: Path) -> tuple[dict[str, Any], bool]:
    """Run the entry point of a bundle in an empty folder; return its report, and whether all pass.

    A base whose head only adapters bring cannot be compared; every adapter has to be.
    """
    with tempfile.TemporaryDirectory() as temporary:
        run("tar", "xf", bundle.resolve(), "-C", temporary)
        (program,) = Path(temporary).glob("*/run.py")
        done = subprocess.run(
            [*map(str, python), str(program), "verify", "--runtime", "onnxruntime"],
            cwd=temporary,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(site)},
            text=True,
            capture_output=True,
            check=False,
        )
        print(done.stdout)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return {"bundle": bundle.name, "exit": done.returncode}, False
        report = json.loads((program.parent / "report.onnxruntime.json").read_text("utf-8"))
    rows = report["parity"]["graphs"]
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    errors = {name: (row["metrics"] or {}).get("relative_l2") for name, row in rows.items()}
    green = all(verdict == "pass" for name, verdict in verdicts.items() if name != "base")
    kept = {key: report[key] for key in ("says", "machine")}
    found = {"bundle": bundle.name, "exit": 0, **kept, "verdicts": verdicts, "relative_l2": errors}
    return found, green and verdicts["base"] in {"pass", "unverified"}


def resolve_core(python: str) -> list[str]:
    """Return the wheels of the light core on aarch64; end where one is missing or another."""
    platforms = [flag for each in PLATFORMS for flag in ("--platform", each)]
    with tempfile.TemporaryDirectory() as temporary:
        run(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--dry-run",
            "--quiet", "--ignore-installed", "--only-binary=:all:", "--python-version", python,
            *platforms, "--target", temporary, "--report", f"{temporary}/report.json",
            "--no-deps", "--require-hashes", "-r", ROOT / "requirements-core.lock")  # fmt: skip
        report = json.loads(Path(temporary, "report.json").read_text("utf-8"))
    return sorted(
        f"{each['metadata']['name']} {each['metadata']['version']}" for each in report["install"]
    )


def main(arguments: list[str]) -> int:
    """Do all of it; return the exit code."""
    if len(arguments) < 2:  # noqa: PLR2004  (a folder and a bundle)
        sys.exit(__doc__)
    folder = Path(arguments[0]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    qemu, root, site = find_qemu(folder), make_userland(folder), fetch_wheels(folder)
    python: list[str | Path] = [qemu, "-L", root, root / "usr/bin/python3.11"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    print(run(*python, "-c", "import platform, sys; print(platform.machine(), sys.version)",
              env=environment).strip())  # fmt: skip
    torch = run(*python, "-c", "import importlib.util as u; print(u.find_spec('torch'))",
                env=environment).strip()  # fmt: skip
    checked = [verify(Path(each), python, site) for each in arguments[1:]]
    summary: dict[str, Any] = {
        "torch": torch,
        "bundles": [row for row, _ in checked],
        "core": {each: resolve_core(each) for each in PYTHONS},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for each, wheels in summary["core"].items():
        print(f"light core on aarch64, Python {each}: {len(wheels)} wheels, {', '.join(wheels)}")
    green = torch == "None" and all(passed for _, passed in checked)
    print("aarch64: every bundle verifies" if green else "aarch64: FAILED")
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
