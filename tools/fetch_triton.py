"""Fetch the Triton server that the tests start: the one that nvidia-pytriton carries.

The package needs NumPy below 2, so it is not installed beside lora-export: its wheel is unpacked
into a folder of its own, with an environment in which the models run, and the Python backend is
given the stub of this interpreter's version. The stub needs that version's libpython, which Debian
has in a package.

    python tools/fetch_triton.py build/triton
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "nvidia-pytriton==0.7.0"  # tritonserver 2.51.0
NUMPY = "numpy==1.26.4"  # the last that this server's Python backend can read
MODELS_NEED = ("onnxruntime", "tokenizers")  # in the versions of constraints.txt
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def main() -> None:
    """Fetch and unpack the server unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    server = folder / "pytriton" / "tritonserver"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    if not stub.is_file():
        _unpack(folder)
        own = server / "python_backend_stubs" / VERSION / stub.name
        if not own.is_file():
            sys.exit(f"error: {PACKAGE} has no Python backend for Python {VERSION}")
        for path in (server / "bin" / "tritonserver", own):
            path.chmod(0o755)
        shutil.copy2(own, stub)
    _require_libpython(stub)
    _make_environment(folder / "venv")
    print(server)


def _unpack(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as download:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", download,
             "--disable-pip-version-check", PACKAGE],
            check=True,
        )  # fmt: skip
        (wheel,) = Path(download).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def _make_environment(venv: Path) -> None:
    """Make the environment that models run in."""
    if (venv / ".installed").is_file():
        return
    pins = Path("constraints.txt").read_text("utf-8").splitlines()
    exact = [line.partition(";")[0] for line in pins if line.startswith(MODELS_NEED)]
    newest = {line.partition("==")[0]: line.strip() for line in reversed(exact)}
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    subprocess.run(
        [venv / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", NUMPY,
         *newest.values()],
        check=True,
    )  # fmt: skip
    (venv / ".installed").touch()


def _require_libpython(stub: Path) -> None:
    """Install Debian's libpython where the loader does not find this interpreter's."""
    if "not found" not in _linked(stub):
        return
    if (Path(sysconfig.get_config_var("LIBDIR")) / f"libpython{VERSION}.so.1.0").is_file():
        return  # the tests put this folder on the loader's path
    subprocess.run(["apt-get", "update", "-q"], check=True)
    subprocess.run(
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", f"libpython{VERSION}"],
        check=True,
    )


def _linked(path: Path) -> str:
    return subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
