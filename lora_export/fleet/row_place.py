"""The place of what a row makes: its names are those of folders in a store, and checked as such."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lora_export.core.files import is_file_name, is_relative_inside
from lora_export.core.model_json import first_finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = ["KINDS", "Kind", "RowPlace", "place_of"]

Kind = Literal["export", "adapter", "engine", "bundle", "triton"]
KINDS: Final = ("export", "adapter", "engine", "bundle", "triton")


class RowPlace(BaseModel):
    """A row, by what it makes.

    Attributes:
        kind: ``export``: the base of a variant; ``adapter``: an adapter added to it and verified;
            ``engine``: a TensorRT engine; ``bundle``: a bundle for a device; ``triton``: models
            in a repository for the Triton server.
        key: The hash of all that its result depends on.
        base: The name of the base.
        variant: The name of the variant.
        adapter: The name of the adapter, where the row is about one.
        target: The target, where the row is for one.
        artifact: What it makes, relative to the store: of an export ``exports/BASE/VARIANT``; for
            ``triton`` the export that is served.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    kind: Kind
    key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    base: str
    variant: str
    adapter: str | None = None
    target: str | None = None
    artifact: str

    @model_validator(mode="after")
    def _stays_inside(self) -> Self:
        """Require names without paths: folders of a store are made of them, and removed."""
        for what in ("base", "variant", "adapter", "target"):
            name = getattr(self, what)
            if name is not None and (not is_file_name(name) or "\0" in name):
                msg = f"the {what} {name!r} is not a name"
                raise ValueError(msg)
        if not is_relative_inside(self.artifact) or not PurePosixPath(self.artifact).parts:
            msg = f"the artifact {self.artifact!r} leads out of the store"
            raise ValueError(msg)
        if self.kind == "export" and self.artifact != f"exports/{self.base}/{self.variant}":
            msg = f"the artifact {self.artifact!r} is not exports/{self.base}/{self.variant}"
            raise ValueError(msg)
        return self


def place_of(row: Mapping[str, Any]) -> RowPlace:
    """Return the place of a row of a report.

    Raises:
        ValueError: It is no such row; the text names the field.
    """
    try:
        return RowPlace.model_validate(row)
    except ValidationError as error:
        raise ValueError(first_finding(error, "a row")) from error
