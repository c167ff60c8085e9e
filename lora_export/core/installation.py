"""Commands that install the package's extras: from a clone, because no index has the package."""

from __future__ import annotations

__all__ = ["install_command"]


def install_command(extra: str = "") -> str:
    """Return where and how to install the package, with one of its extras.

    >>> install_command("cpu")
    "in a clone of lora-export: pip install -e '.[cpu]'"
    >>> install_command()
    'in a clone of lora-export: pip install -e .'
    """
    target = f"'.[{extra}]'" if extra else "."
    return f"in a clone of lora-export: pip install -e {target}"
