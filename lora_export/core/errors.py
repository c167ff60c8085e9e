"""The tree of errors, each class with its exit code.

    LoraExportError                 1   unforeseen by a more precise class
    ├── UsageError                  2   the command line or the recipe is wrong
    ├── InputError                  3   a file is missing, damaged or does not fit
    │   ├── CheckpointError             the base checkpoint
    │   ├── AdapterError                an adapter
    │   ├── ExportDirectoryError        an export directory or its manifest
    │   ├── BundleError                 a bundle for a device, or its index
    │   ├── HubError                    what an id of the hub means is not to be had
    │   └── StorageError                the disk: full, read-only, not permitted
    ├── UnsupportedError            4   well-formed, but not something that is handled
    │   ├── FixedLengthError            a model whose trace is right for some sizes only
    │   └── TiedParameterError          a change to one of several names of a parameter
    ├── ParityError                 5   the graph does not compute what the adapter computes
    ├── LatencyError                6   the graph is slower than its gate allows
    └── MissingRuntimeError         7   a package that this step needs is not installed

A message says what is wrong, the offending name and value, and what to do next. Foreign errors are
translated once, in the module that owns the library, with ``raise … from``. Those that arise on a
device too are defined in ``ondevice/device_errors.py``, which is packed into bundles.
"""

from __future__ import annotations

from lora_export.ondevice.device_errors import (
    BundleError,
    ExportDirectoryError,
    InputError,
    LatencyError,
    LoraExportError,
    MissingRuntimeError,
    ParityError,
    StorageError,
    UnsupportedError,
    UsageError,
)

__all__ = [
    "AdapterError",
    "BundleError",
    "CheckpointError",
    "ExportDirectoryError",
    "FixedLengthError",
    "HubError",
    "InputError",
    "LatencyError",
    "LoraExportError",
    "MissingRuntimeError",
    "ParityError",
    "StorageError",
    "TiedParameterError",
    "UnsupportedError",
    "UsageError",
]


class CheckpointError(InputError):
    """The base checkpoint is missing, damaged or incomplete."""


class AdapterError(InputError):
    """An adapter is damaged, or does not fit its base."""


class HubError(InputError):
    """An id of the Hugging Face hub cannot be resolved or downloaded."""


class FixedLengthError(UnsupportedError):
    """A model whose trace is right for some sizes of its inputs only."""


class TiedParameterError(UnsupportedError):
    """An adapter changes one of several names of a parameter: the model has to be untied first."""
