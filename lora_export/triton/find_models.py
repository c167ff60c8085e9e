"""The models of a repository that belong to one base, and what they hold."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lora_export.core.errors import AdapterError, ExportDirectoryError, InputError, UsageError
from lora_export.core.modes import BATCHED_GRAPH
from lora_export.triton.model_config import ADAPTER, FINGERPRINT
from lora_export.triton.protobuf_schema import CONFIG_NAME, parse_config
from lora_export.triton.python_models import INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")

__all__ = ["RepositoryModel", "find_models", "is_cached", "the_only", "versions_of"]

_MAKE: Final = "Make one with: lora-export triton EXPORT --repository DIR"


@dataclass(frozen=True)
class RepositoryModel:
    """A model of a repository.

    Attributes:
        folder: Its folder.
        config: Its configuration.
        version: The folder of its newest version.
    """

    folder: Path
    config: Any
    version: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its base; empty if lora-export did not write the model."""
        return self._parameter(FINGERPRINT)

    @property
    def adapter(self) -> str:
        """The adapter whose graph it is; empty where it is another kind of model."""
        return self._parameter(ADAPTER)

    @property
    def stem(self) -> str:
        """The beginning of its name, as ``--name`` gave it."""
        return self.name.removesuffix(f"-{self.adapter}") if self.adapter else self.name

    @property
    def serves_adapters(self) -> bool:
        """Whether it is a model of the Python backend that holds adapters."""
        return (self.version / INDEX).is_file()

    @property
    def is_batched_graph(self) -> bool:
        """Whether a backend runs a batched graph by itself."""
        return self.adapter == BATCHED_GRAPH

    def _parameter(self, key: str) -> str:
        held = self.config.parameters
        return str(held[key].string_value) if key in held else ""


def versions_of(folder: Path) -> list[Path]:
    """Return the version folders of a model, oldest first."""
    found = [e for e in folder.iterdir() if _VERSION.fullmatch(e.name) and e.is_dir()]
    return sorted(found, key=lambda each: int(each.name))


def find_models(repository: Path, fingerprint: str | None = None) -> list[RepositoryModel]:
    """Return the models of a repository that lora-export wrote, by name.

    Args:
        repository: The repository.
        fingerprint: Only those of this base; all without.

    Raises:
        ExportDirectoryError: There is no repository.
    """
    try:
        folders = sorted(each for each in repository.iterdir() if (each / CONFIG_NAME).is_file())
    except OSError as error:
        msg = f"{str(repository)!r} is not a model repository: {error.strerror}"
        raise ExportDirectoryError(msg, hint=_MAKE) from error
    found = []
    for folder in folders:
        versions = versions_of(folder)
        with contextlib.suppress(InputError):  # somebody else's, of another schema
            config = parse_config(folder / CONFIG_NAME)
            if versions:
                found.append(RepositoryModel(folder, config, versions[-1]))
    return [e for e in found if e.fingerprint and fingerprint in {None, e.fingerprint}]


def is_cached(repository: Path, model: RepositoryModel) -> bool:
    """Whether answers of a model may come from the response cache: its own, or an ensemble's."""
    if model.config.response_cache.enable:
        return True
    return any(
        each.config.response_cache.enable
        and any(step.model_name == model.name for step in each.config.ensemble_scheduling.step)
        for each in find_models(repository)
    )


def the_only(
    models: Iterable[RepositoryModel], name: str | None, repository: Path
) -> list[RepositoryModel]:
    """Return the models of one ``--name``; they are of one kind.

    Raises:
        AdapterError: There is none.
        UsageError: There are several and `name` does not choose.
    """
    stems: dict[str, list[RepositoryModel]] = {}
    for each in models:
        if each.serves_adapters or each.adapter:
            stems.setdefault(each.stem, []).append(each)
    if name is not None:
        stems = {stem: found for stem, found in stems.items() if stem == name}
    if not stems:
        what = "of this base" if name is None else f"called {name!r}"
        msg = f"the repository {str(repository)!r} has no model {what}"
        raise AdapterError(msg, hint=_MAKE)
    if len(stems) > 1:
        msg = f"the repository {str(repository)!r} has several: {', '.join(sorted(stems))}"
        raise UsageError(msg, hint="Choose one: --name NAME")
    return next(iter(stems.values()))
