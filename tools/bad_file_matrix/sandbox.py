"""A copy of the inputs in which one is spoiled, and which is whole again afterwards."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import signal
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tools.bad_file_matrix.kinds import COPY, GROWING, KINDS, OTHER, Place, clear

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Sandbox", "make_sandbox", "tree_of"]

_PIECE: Final = b"\n" * 65_536
_MOST_PIECES: Final = 4_096

Tree = dict[str, tuple[int, ...]]
"""What lies below a folder: each path with its mode, size, time of change and inode."""


@dataclass
class Sandbox:
    """A folder with a copy of the inputs, an empty one for outputs and one that is home.

    Attributes:
        pristine: The inputs that are copied.
        world: The copy.
        out: Where commands write.
        scratch: What belongs to no command.
        outside: What links lead to and no command may change: a second copy of the inputs, and a
            folder with a file that is none of them.
        whole: What the copy is while nothing is spoiled.
    """

    pristine: Path
    world: Path
    out: Path
    scratch: Path
    outside: Path
    whole: Tree = field(default_factory=dict, repr=False)

    def changed(self) -> list[str]:
        """Return the paths of the copy that are no more what they were, sorted."""
        now = tree_of(self.world)
        return sorted(
            path for path in now.keys() | self.whole.keys() if now.get(path) != self.whole.get(path)
        )

    def is_rewritten(self, path: str) -> bool:
        """Return whether a file of the copy was written again with the same content."""
        here, there = self.world / path, self.pristine / path
        are_files = all(each.is_file() and not each.is_symlink() for each in (here, there))
        return are_files and filecmp.cmp(here, there, shallow=False)

    def restore(self) -> None:
        """Make the copy whole again, and the folder for outputs empty."""
        for path in self.changed():
            clear(self.world / path)
        for path in self.changed():
            source, target = self.pristine / path, self.world / path
            if not os.path.lexists(source):
                continue
            if source.is_dir() and not source.is_symlink():
                target.mkdir(exist_ok=True)
            else:
                shutil.copy2(source, target, follow_symlinks=False)
        now = tree_of(self.world)
        assert now.keys() == self.whole.keys()  # noqa: S101
        self.whole = now
        clear(self.out)
        self.out.mkdir()

    def make_outside(self) -> None:
        """Make anew what links lead to."""
        clear(self.outside)
        shutil.copytree(self.pristine, self.outside / COPY, symlinks=True)
        (self.outside / OTHER).mkdir()
        (self.outside / OTHER / OTHER).write_text("127.0.0.1 localhost\n")

    @contextlib.contextmanager
    def spoiled(self, path: str, kind: str) -> Iterator[Tree]:
        """Spoil a path of the copy; yield what the copy is then."""
        place = Place(path, self.world / path, self.pristine / path, self.outside)
        place.path.parent.mkdir(parents=True, exist_ok=True)
        KINDS[kind].spoil(place)
        growing = _grow(place.path) if kind == GROWING else None
        try:
            yield tree_of(self.world)
        finally:
            if growing is not None:
                os.kill(growing, signal.SIGKILL)
                os.waitpid(growing, 0)


def make_sandbox(pristine: Path, root: Path) -> Sandbox:
    """Copy the inputs into `root`."""
    world, out, scratch = (root / name for name in ("world", "out", "scratch"))
    shutil.copytree(pristine, world, symlinks=True)
    for folder in (out, scratch):
        folder.mkdir()
    sandbox = Sandbox(pristine, world, out, scratch, root / "outside", tree_of(world))
    sandbox.make_outside()
    return sandbox


def tree_of(folder: Path) -> Tree:
    """Return what lies below a folder; no link is followed."""
    found: Tree = {}
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        try:
            entries = list(os.scandir(f"{folder}/{inner}"))
        except PermissionError:
            continue
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            name = f"{inner}{entry.name}"
            if stat.S_ISDIR(status.st_mode):
                found[name] = (status.st_mode,)
                waiting.append(f"{name}/")
            else:
                found[name] = (
                    status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino,
                )  # fmt: skip
    return found


def _grow(path: Path) -> int:
    """Start a process that lengthens a file; return its number."""
    if (pid := os.fork()) != 0:
        return pid
    try:
        with path.open("ab", buffering=0) as stream:
            for _ in range(_MOST_PIECES):
                stream.write(_PIECE)
                time.sleep(0.001)
    finally:
        os._exit(0)
