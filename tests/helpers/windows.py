"""A Python without what Windows does not have, for programs that are to run there too.

It is no Windows: paths, shares and the console are those of this system, and NumPy is its build.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LIKE_WINDOWS", "MISSING_MODULES"]

MISSING_MODULES: Final = (
    "fcntl", "grp", "posix", "pwd", "pty", "resource", "spwd", "syslog", "termios", "tty",
    "_posixsubprocess", "_posixshmem",
)  # fmt: skip
"""Modules of the standard library that Windows does not have."""

_MISSING_NAMES: Final = {
    "os": (
        "O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "fork",
        "forkpty", "getuid", "geteuid", "getgid", "getpgid", "killpg", "mkfifo", "nice",
        "sched_getaffinity", "sched_setaffinity", "setsid", "statvfs", "sysconf", "uname", "wait4",
    ),
    "signal": ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "alarm", "setitimer", "pthread_sigmask"),
    "time": ("clock_gettime", "CLOCK_MONOTONIC"),
}  # fmt: skip

LIKE_WINDOWS: Final = f"""
import numpy, os, pathlib, shutil, signal, sys, time
_open = os.open
def _no_folders(path, flags, mode=0o777):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return _open(path, flags, mode)
os.open = _no_folders
shutil._use_fd_functions = False
for _module, _names in {_MISSING_NAMES!r}.items():
    for _name in _names:
        if hasattr(sys.modules[_module], _name):
            delattr(sys.modules[_module], _name)
for _name in {MISSING_MODULES!r}:
    sys.modules[_name] = None
"""
"""Code that takes away what is missing; what was imported before keeps what it has."""
