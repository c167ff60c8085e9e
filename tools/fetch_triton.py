"""Fetch the Triton server that the tests start: the one that nvidia-pytriton carries.

The package needs NumPy below 2, so it is not installed beside lora-export: its wheel is unpacked
into a folder of its own, with an environment in which the models run, and the Python backend is
given the stub of this interpreter's version. The stub needs that version's libpython, which Debian
has in a package.

    python -m tools.fetch_triton build/triton
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

from tools.locked_download import download, install

PACKAGE = "nvidia-pytriton"
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
    with tempfile.TemporaryDirectory() as temporary:
        (wheel,) = download("triton-server", Path(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def _make_environment(venv: Path) -> None:
    """Make the environment that models run in."""
    if (venv / ".installed").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    install(venv / "bin" / "python", "triton-models")
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
